"""Collects what a page shows of the records of a run. It reads the records in passes whose memory grows by 8 bytes a
step."""

from __future__ import annotations

from array import array
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from treeadv.jsonl import JsonMapping, JsonObject
from treeadv.report.curves import MAX_POINTS
from treeadv.report.health import WINDOW
from treeadv.storage.run_folder import RunFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class Digest:
    """Totals of the records of a run, its first and last steps, and its last records."""

    count: int
    last: JsonMapping  # the last record; {} if there is none
    rewards: Sequence[float]  # the mean reward of each step
    staleness: int  # the largest staleness of all steps
    verdicts: Mapping[str, int]
    first_steps: Sequence[int]
    last_steps: Sequence[int]  # in descending order
    tail: Sequence[JsonObject]  # the last records

    def reward(self) -> tuple[float, float]:
        """Return the mean reward of the first and of the last fifth of the steps."""
        fifth = max(1, self.count // 5)
        return fmean(self.rewards[:fifth]), fmean(self.rewards[-fifth:])


def digest(folder: RunFolder, ends: int = 0) -> Digest:
    """Read the records of a run, which may still write records. `ends` is the number of first and of last steps to
    return.

    Raises `BadInput` for a damaged record."""
    rewards, staleness = array("d"), 0
    verdicts: Counter[str] = Counter()
    first_steps: list[int] = []
    last_steps: deque[int] = deque(maxlen=ends)
    tail: deque[JsonObject] = deque(maxlen=WINDOW + 1)
    last: JsonObject = {}
    for last in folder.shown_records():
        rewards.append(last["reward_mean"])
        staleness = max(staleness, last["staleness_max"])
        verdicts.update(last.get("verdicts", {}))
        if len(first_steps) < ends:
            first_steps.append(last["step"])
        last_steps.appendleft(last["step"])
        tail.append(last)
    return Digest(
        count=len(rewards), last=last, rewards=rewards, staleness=staleness, verdicts=verdicts,
        first_steps=first_steps, last_steps=tuple(last_steps), tail=tuple(tail),
    )  # fmt: skip


def evenly(folder: RunFolder, last: int, longest: int) -> list[JsonObject]:
    """Return records of a run up to step `last` at even distances. A run of `longest` steps gives at most MAX_POINTS
    records."""
    stride = -(-longest // MAX_POINTS)
    return [r for r in folder.read_records(last) if (r["step"] - 1) % stride == 0]
