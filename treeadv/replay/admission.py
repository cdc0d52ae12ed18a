"""The check and the measures of a graded forest before the queue stores the forest."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

import pyarrow as pa

from treeadv import wire
from treeadv.config import QueueConfig
from treeadv.errors import BadForest, BadInput
from treeadv.forest import Forest
from treeadv.forest.faults import all_sound
from treeadv.replay.records import Admitted, Dropped, DropReason, Place

Admission = Literal["admitted", "repeat", "late", "refused", "dropped"]


def graded_forests(fids: Sequence[str], batch: pa.RecordBatch) -> list[Forest | BadForest]:
    """Return the forests of a batch, whose rows have the ids `fids`.

    A forest that breaks an invariant, is not graded or has another id is replaced by the error. If the batch has
    another number of rows or another schema, every forest is replaced by this error."""
    try:
        forests = wire.from_batch(batch)
    except BadInput as e:
        return [BadForest(fid, str(e)) for fid in fids]
    if len(forests) != len(fids):
        return [BadForest(fid, f"the batch holds {len(forests)} forests instead of {len(fids)}") for fid in fids]
    sound = all_sound(forests)
    return [_graded(fid, forest, sound) for fid, forest in zip(fids, forests, strict=True)]


def _graded(fid: str, forest: Forest, sound: bool) -> Forest | BadForest:
    if not sound:
        try:
            forest.check()
        except BadForest as e:
            return e
    if forest.forest_id != fid:
        return BadForest(fid, f"the batch holds forest {forest.forest_id} instead")
    return forest if forest.graded else BadForest(fid, "not graded")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """The reason for which the queue drops a valid forest and does not store it."""

    reason: DropReason
    detail: str


def rejection(forest: Forest, config: QueueConfig) -> Rejection | None:
    """Return the reason for which the queue drops a graded forest on admission; None if the queue stores the forest.

    The queue drops a forest with fewer than two judged leaves, because such a forest gives no advantage. With
    `queue.mixed_only` the queue also drops a forest whose judged leaves all have the same reward (dynamic sampling,
    DAPO, arXiv:2503.14476)."""
    rewards = judged_rewards(forest)
    judged = len(rewards)
    if judged < min(2, forest.leaves):
        return Rejection(reason="too_few_judged", detail=f"{judged} of {forest.leaves} leaves were judged")
    if config.mixed_only and min(rewards) == max(rewards):
        return Rejection(reason="no_variance", detail=f"all {judged} judged leaves have reward {rewards[0]:g}")
    return None


def judged_rewards(forest: Forest) -> list[float]:
    """Return the rewards of the judged leaves. A forest that `rejection` keeps has at least one. For so few values
    numbers are faster than arrays."""
    return forest.reward[forest.judged].tolist()


def advantage_mass(rewards: Sequence[float]) -> float:
    """Return the sum over leaves of |R - mean R|. It is 0 if all leaves have the same reward.

    `rewards` must not be empty."""
    mean = fmean(rewards)
    return sum(abs(r - mean) for r in rewards)


def admission_record(forest: Forest, place: Place) -> Admitted:
    """Return the record of a stored forest. The reward in the record is the mean over the judged leaves."""
    rewards = judged_rewards(forest)
    return Admitted(
        forest_id=forest.forest_id, leaves=forest.leaves, tokens=forest.tokens, oldest_version=forest.oldest_version,
        newest_version=forest.newest_version, reward=fmean(rewards),
        mass=advantage_mass(rewards), payload_file=place.file, offset=place.offset, length=place.length,
        payload_crc=place.crc, payload_row=place.row,
    )  # fmt: skip


def drop_message(record: Dropped) -> tuple[int, str]:
    """Return the log level and the text of the message about a dropped forest."""
    level, prompt = (logging.WARNING, "gets another attempt") if record.refill else (logging.ERROR, "is given up")
    if record.reason in ("no_variance", "no_prompt"):
        prompt = "gets no other attempt"
        level = logging.INFO if record.reason == "no_variance" else logging.WARNING
    return level, f"forest {record.forest_id} dropped as {record.reason}: {record.detail}; its prompt {prompt}"
