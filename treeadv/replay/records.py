"""The transitions of a forest as records of the journal, and their JSON. A record states a fact; reading it back
decides nothing."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

FORMAT = 4

DropReason = Literal[
    "stale", "failed", "invalid", "damaged", "too_few_judged", "not_finite", "no_variance", "no_prompt"
]


@dataclass(frozen=True, slots=True)
class Opened:
    """The first record of a journal. `run` is the part of every forest id that names the run; for `session` see
    `Resumed`."""

    run: str
    session: str
    format: int = FORMAT


@dataclass(frozen=True, slots=True)
class Reserved:
    """A worker got a prompt, and the forest holds a slot from now on.

    `request` is the worker's own name of the call, "" if it has none. `failures` counts the attempts of this draw that
    failed before.
    """

    forest_id: str
    draw: int
    attempt: int
    failures: int
    worker: str
    request: str
    prompt_id: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where a payload lies: `offset` and `length` in bytes of the encapsulated Arrow message, `crc` its CRC-32."""

    file: str
    offset: int
    length: int
    crc: int


@dataclass(frozen=True, slots=True)
class Admitted:
    """A graded forest was written to a payload file.

    `reward` is the mean R over leaves, `mass` the sum of |R - mean R| over leaves. The last four fields are its
    `place`."""

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

    @property
    def place(self) -> Place:
        return Place(self.payload_file, self.offset, self.length, self.payload_crc)


@dataclass(frozen=True, slots=True)
class Leased:
    """Forests went to the learner at policy `version`, in this order.

    No token of them is newer than `version` or more than `max_staleness` versions older. `deadline` is in seconds of
    the queue's clock."""

    lease_id: str
    forest_ids: tuple[str, ...]
    version: int
    max_staleness: int
    deadline: float


@dataclass(frozen=True, slots=True)
class Acked:
    """The optimizer step that used the lease is done, and its slots are free. Its forests stay leased until the step is
    durable. Then those in `skipped`, whose update was not finite, are dropped."""

    lease_id: str
    step: int
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Returned:
    """A lease ended without a step: its forests are ready again, in their old order."""

    lease_id: str
    reason: Literal["nack", "expired"]


@dataclass(frozen=True, slots=True)
class Dropped:
    """A forest will not be trained, and its slot is free.

    With `refill` its prompt goes out again as the next attempt of the same draw; otherwise the draw is finished.
    """

    forest_id: str
    reason: DropReason
    detail: str
    refill: bool


@dataclass(frozen=True, slots=True)
class Committed:
    """Every step up to this one is in a durable checkpoint. The run may resume from any step since `oldest_kept`, that
    of the oldest checkpoint that is kept."""

    step: int
    oldest_kept: int


@dataclass(frozen=True, slots=True)
class Resumed:
    """The run resumes from the checkpoint of `step`: forests leased since are ready in the order of their leases, and
    reserved prompts go out again.

    `session` names the start of the run that asked for it. A queue that is opened again in that session does not go
    back."""

    step: int
    session: str


@dataclass(frozen=True, slots=True)
class Released:
    """These payload files are deleted, because they hold only finished forests."""

    payload_files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The whole state, in place of all records before it. `ledger` is what `Ledger.to_state` returns."""

    ledger: dict[str, Any]
    format: int = FORMAT


Record = Opened | Reserved | Admitted | Leased | Acked | Returned | Dropped | Committed | Resumed | Released | Snapshot
_KINDS: dict[str, type] = {k.__name__.lower(): k for k in Record.__args__}  # type: ignore[attr-defined]
_FIELDS = {k: tuple(f.name for f in fields(k)) for k in _KINDS.values()}
_NAMES = {k: frozenset(names) for k, names in _FIELDS.items()}
_CHECKED = {k: TypeAdapter(k).validator.validate_python for k in _KINDS.values()}


def to_dict(record: Record) -> dict[str, Any]:
    """Return the JSON form, with the type's name in lower case as `kind`."""
    kind = type(record)
    return {"kind": kind.__name__.lower(), **{n: getattr(record, n) for n in _FIELDS[kind]}}


def from_dict(tree: dict[str, Any]) -> Record:
    """Invert `to_dict`. Raises ValueError, in one line, for a kind, fields or values that this release does not
    know."""
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
    """Return the id of one attempt. A repeat has the same id and is recognised; a new attempt has a new one, so a late
    answer is recognised too."""
    return f"{run}-{draw:06d}-{attempt}"
