"""The table of the fields of a record in metrics.jsonl, and the check of a record that was read from a file.

docs/metrics.md is generated from the table, and the tests compare records with it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from treeadv.errors import BadInput
from treeadv.jsonl import JsonMapping, JsonObject, parse_object


@dataclass(frozen=True, slots=True)
class RecordField:
    """One field of a record. An `optional` field is absent or null in the cases that `meaning` describes."""

    name: str
    kind: str
    unit: str
    meaning: str
    optional: bool = False


# fmt: off
FIELDS: tuple[RecordField, ...] = (
    RecordField("step", "integer", "", "Number of the step, from 1"),
    RecordField("elapsed_s", "number", "s", "Wall time of the run up to this record, over all its drivers"),
    RecordField("version", "integer", "", "Policy version after the step; it counts optimizer updates"),
    RecordField("updates", "integer", "", "Optimizer updates taken in the step"),
    RecordField("idle_updates", "integer", "", "Updates not taken, because no forest could change the weights"),
    RecordField("nonfinite_updates", "integer", "", "Updates not taken, because loss or gradient was not finite"),
    RecordField("nonfinite_forests", "list of texts", "", "Forests of these updates that no other update trained"),
    RecordField("clipped_gradients", "integer", "", "Updates whose gradient norm was above learner.clip_grad"),
    RecordField("forests_without_gradient", "integer", "", "Forests not packed, because all their advantages are 0"),
    RecordField("loss", "number", "", "Mean loss of the updates taken; 0 without one"),
    RecordField("grad_norm", "number", "", "Mean gradient norm before clipping; 0 without an update"),
    RecordField("lr", "number", "", "Learning rate of the last update"),
    RecordField("clip_ratio", "number", "share", "Tokens whose ratio was clipped"),
    RecordField("mask_ratio", "number", "share", "Tokens masked by the correction"),
    RecordField("mismatch_kl", "number", "nats", "KL (k3) between the behaviour policy and the learner's, a token"),
    RecordField("ess", "number", "share", "Effective sample size of the importance weights over the tokens"),
    RecordField("reference_kl", "number", "nats", "KL to the reference policy, a token; 0 without a KL term"),
    RecordField("mfu", "number", "share",
        "Model FLOPs utilisation; null where the peak of the device is not known", optional=True),
    RecordField("leaves", "integer", "", "Leaves of the forests of the step"),
    RecordField("reward_mean", "number", "", "Mean reward of the judged leaves"),
    RecordField("reward_by_family", "object", "",
        "Mean reward of the judged leaves by task family: the id of the prompt without the numbers at its end. The "
        "16 most frequent families of the step; the rest is `other`"),
    RecordField("verdicts", "object", "leaves", "Leaves by verdict"),
    RecordField("answer_tokens", "number", "tokens",
        "Mean length of an answer, from its root to its end; leaves that the engine lost do not count"),
    RecordField("answer_tokens_by_verdict", "object", "tokens", "The same by verdict"),
    RecordField("truncated", "number", "share", "Answers that reached the token limit"),
    RecordField("mixed", "number", "share", "Forests with a verified answer and a judged one that is not verified"),
    RecordField("zero_variance", "number", "share", "Forests whose judged leaves all have the same reward"),
    RecordField("entropy_mean", "number", "nats", "Mean entropy of the tokens of the forests"),
    RecordField("tau", "number", "nats", "Fork threshold in force, mean over the generators"),
    RecordField("tokens_generated", "number", "tokens", "Total of the run: tokens drawn"),
    RecordField("prompt_tokens", "number", "tokens", "Total of the run: prefix tokens sent to the engines"),
    RecordField("cached_tokens", "number", "tokens", "Total of the run: of those, found in a cache"),
    RecordField("tokens_trained", "integer", "tokens", "Total of the run: tokens trained, each token of a forest once"),
    RecordField("tokens_expanded", "integer", "tokens", "Total of the run: tokens that the same leaves have flattened"),
    RecordField("forests", "object", "forests",
        "Forests of the run by state, after the step: `reserved` (a slot is given), `ready` (graded, waits), "
        "`leased` (in a step that is not in a checkpoint yet), `trained` (its step is in a checkpoint), `dropped`"),
    RecordField("admitted", "integer", "forests",
        "Total of the run: forests admitted = ready + leased + trained + dropped after admission"),
    RecordField("law_error", "integer", "",
        "Error of this equation, summed over forests, leaves and tokens; anything but 0 is a defect"),
    RecordField("dropped", "object", "forests", "Total of the run: forests dropped by reason"),
    RecordField("dropped_tokens", "object", "tokens",
        "Total of the run: tokens of dropped forests by reason; a forest that was not admitted counts none"),
    RecordField("sharing", "number", "share", "Share of the flattened tokens that the step did not compute"),
    RecordField("staleness_mean", "number", "versions",
        "Learner's version minus the oldest version of a token, mean over the forests"),
    RecordField("staleness_max", "integer", "versions", "The largest of them"),
    RecordField("publication_lag_mean", "number", "updates",
        "Updates between the arrival of a batch and the first update on a forest, mean"),
    RecordField("publication_lag_max", "integer", "updates", "The largest of them"),
    RecordField("decode_tokens_per_s", "number", "tokens/s", "Tokens drawn since the last record, by all engines"),
    RecordField("generator_busy_s", "number", "s",
        "Time since the last record in which an engine decoded, summed over the engines"),
    RecordField("prefix_reuse", "number", "share",
        "Prefix tokens found in a cache; absent where no branch started", optional=True),
    RecordField("seconds", "object", "s",
        "Wall time by phase of the step: `wait` (for forests), `publish`, `checkpoint`, `evaluate` and the learner's "
        "phases"),
)
# fmt: on
_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "integer": int,
    "number": (int, float),
    "list of texts": list,
    "object": dict,
}


def faults(record: JsonMapping) -> Iterator[str]:
    """Yield each difference of a record from the table: a missing field, an unknown field, or a value of another
    type."""
    known = {field.name for field in FIELDS}
    yield from (f"{name} is not in the table" for name in record if name not in known)
    for field in FIELDS:
        value = record.get(field.name)
        if value is None:
            if not field.optional:
                yield f"{field.name} is missing"
        elif not isinstance(value, _TYPES[field.kind]):
            yield f"{field.name} is a {type(value).__name__}, not a {field.kind}"


def parse_record(line: bytes) -> JsonObject:
    """Return the record of a line of metrics.jsonl or evaluations.jsonl. Raises ValueError if it is no object with a
    step."""
    record = parse_object(line)
    if "step" not in record:
        raise ValueError("it has no step")
    check_number("step", record["step"], whole=True)
    return record


_LARGEST = 1e300  # a larger number comes from no run, and sums and scales of charts would overflow
_FINITE = ("elapsed_s", "seconds")
_SHOWN = (
    "elapsed_s", "reward_mean", "staleness_mean", "staleness_max", "forests", "seconds", "generator_busy_s",
    "tokens_generated", "tokens_trained", "tokens_expanded",
)  # fmt: skip
_BY_NAME = {field.name: field for field in FIELDS}


def check_record(record: JsonMapping) -> None:
    """Raise ValueError for a value that readers of metrics.jsonl cannot use. Fields may be absent, because earlier
    releases had fewer fields."""
    for name, value in record.items():
        field = _BY_NAME.get(name)
        if field is None or (value is None and field.optional):
            continue
        if field.kind == "object":
            values = value.values() if isinstance(value, dict) else [None]
        elif field.kind == "list of texts":
            values = [] if isinstance(value, list) and all(isinstance(v, str) for v in value) else [None]
        else:
            values = [value]
        for number in values:
            check_number(name, number, whole=field.kind == "integer", finite=name in _FINITE)


def check_shown(record: JsonMapping, path: Path) -> None:
    """Raise `BadInput` for a record of `path` without a field that every release writes and every view of a run
    shows."""
    absent = [name for name in _SHOWN if name not in record]
    if absent:
        raise BadInput(
            f"{path}: the record of step {record['step']} has no {', '.join(absent)}: restore the file, or"
            " delete the file and lose its records"
        )


def check_evaluation(record: JsonMapping) -> None:
    """Raise ValueError for a value that readers of evaluations.jsonl cannot use. Raise KeyError or TypeError for a
    record of another form."""
    check_number("step", record["step"], whole=True)
    check_number("seconds", record.get("seconds", 0.0))
    for found in (record, *record["sets"].values()):
        check_number("avg", found["avg"]["value"])
        for end in found["avg"]["interval"] or ():
            check_number("interval", end)
    for found in record["sets"].values():
        for name in ("samples", "tokens_mean", "cut"):
            check_number(name, found[name])


def check_number(name: str, value: object, whole: bool = False, finite: bool = True) -> None:
    if not _is_number(value, whole, finite):
        raise ValueError(f"{name} is {value!r:.40}, not {'an integer' if whole else 'a number'}")


def _is_number(value: object, whole: bool, finite: bool) -> bool:
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        return False
    size = abs(value)  # an integer of any size compares with a float, but math.isfinite would overflow on it
    return size <= _LARGEST or (not finite and (size == math.inf or size != size))


CHECKS = {"metrics.jsonl": check_record, "evaluations.jsonl": check_evaluation}
DAMAGED = (ValueError, KeyError, TypeError, AttributeError, RecursionError)  # errors of a damaged line of these files
