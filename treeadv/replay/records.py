"""The records of the journal and their JSON form. A record states one transition. Applying a record makes no
decision."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from treeadv.jsonl import JsonObject

FORMAT = 5

DropReason = Literal[
    "stale", "failed", "invalid", "damaged", "too_few_judged", "not_finite", "no_variance", "no_prompt"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """The first record of a journal. `run` is the prefix of every forest id of the run. `Resumed` explains
    `session`."""

    run: str
    session: str
    format: int = FORMAT


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserved:
    """A worker got a prompt, and its forest takes a slot.

    `request` is the id of the call and the number of the forest in this call (`ID/0`), or "" if the call has no id.
    `failures` is the number of failed earlier attempts of this draw."""

    forest_id: str
    draw: int
    attempt: int
    failures: int
    worker: str
    request: str
    prompt_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The place of a payload: `offset` and `length` in bytes of the encapsulated Arrow message, its CRC-32, and the row
    of the forest in the message."""

    file: str
    offset: int
    length: int
    crc: int
    row: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """A graded forest was written to a payload file.

    `reward` is the mean R over the leaves. `mass` is the sum of |R - mean R| over the leaves. The last five fields
    are the `place` of the payload."""

    forest_id: str
    leaves: int
    tokens: int
    oldest_version: int
    newest_version: int
    reward: float
    mass: float
    payload_file: str
    offset: int
    length: int
    payload_crc: int
    payload_row: int

    @property
    def place(self) -> Place:
        return Place(
            file=self.payload_file, offset=self.offset, length=self.length, crc=self.payload_crc, row=self.payload_row
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Leased:
    """The learner at policy `version` leased forests, in this order.

    Every token of the forests is at most as new as `version` and at most `max_staleness` versions older. `deadline`
    is in seconds of the queue's clock."""

    lease_id: str
    forest_ids: tuple[str, ...]
    version: int
    max_staleness: int
    deadline: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Acked:
    """The learner has taken the optimizer step of the lease, and the slots of the lease are free.

    The forests stay leased until the step is durable. The queue then drops the forests in `skipped`, whose update
    was not finite."""

    lease_id: str
    step: int
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Returned:
    """A lease ended without a step. Its forests are ready again, in the order of admission."""

    lease_id: str
    reason: Literal["nack", "expired"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """The queue dropped a forest. The forest is not trained, and its slot is free.

    With `refill` the prompt gets another attempt of the same draw. Otherwise the draw is finished."""

    forest_id: str
    reason: DropReason
    detail: str
    refill: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """A durable checkpoint contains every step up to `step`.

    The run may resume from any step since `oldest_kept`, which is the step of the oldest kept checkpoint."""

    step: int
    oldest_kept: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed:
    """The run resumes from the checkpoint of `step`.

    Forests that were leased after this step are ready again, in the order of their leases. Reserved prompts get
    another attempt. `session` is the id of the start of the run that resumed. If the queue is opened again in the
    same session, it does not resume again."""

    step: int
    session: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """The queue deletes payload files that hold only finished forests."""

    payload_files: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The complete state. It replaces all earlier records. `ledger` is the result of `Ledger.to_state`."""

    ledger: JsonObject
    format: int = FORMAT


Record = Opened | Reserved | Admitted | Leased | Acked | Returned | Dropped | Committed | Resumed | Released | Snapshot
_KINDS: dict[str, type] = {k.__name__.lower(): k for k in Record.__args__}  # type: ignore[attr-defined]
_FIELDS = {k: tuple(f.name for f in fields(k)) for k in _KINDS.values()}
_NAMES = {k: frozenset(names) for k, names in _FIELDS.items()}
_CHECKED = {k: TypeAdapter(k).validator.validate_python for k in _KINDS.values()}


def to_dict(record: Record) -> JsonObject:
    """Return the record as values that JSON can represent. `kind` is the lower-case name of the record's type."""
    kind = type(record)
    return {"kind": kind.__name__.lower(), **{n: getattr(record, n) for n in _FIELDS[kind]}}


def from_dict(tree: JsonObject) -> Record:
    """Return the record that `to_dict` has turned into `tree`.

    Raises ValueError, in one line, for a kind, fields or values that this release does not know."""
    values = dict(tree)
    kind = _KINDS.get(str(values.pop("kind", "")))
    if kind is None or values.keys() != _NAMES[kind]:
        raise ValueError(f"unknown record {tree.get('kind')!r} with fields {sorted(values)}")
    for name, value in values.items():
        if type(value) is list:
            values[name] = tuple(value)
    try:
        record: Record = _CHECKED[kind](values)
    except ValidationError as e:
        first = e.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "record"
        raise ValueError(f"{tree['kind']} record, {place}: {first['msg']}, not {first['input']!r:.50}") from e
    return record


def forest_id(run: str, draw: int, attempt: int) -> str:
    """Return the id of one attempt at a draw.

    A repeated delivery has the same id as the first delivery. A new attempt has a new id, so the queue recognises a
    late delivery of an old attempt."""
    return f"{run}-{draw:06d}-{attempt}"
