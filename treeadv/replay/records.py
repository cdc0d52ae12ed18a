"""The transitions of a forest as records of the journal, and their JSON. A record states a fact; nothing is decided on replay."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal

FORMAT = 2

DropReason = Literal["stale", "failed", "invalid", "damaged"]


@dataclass(frozen=True, slots=True)
class Opened:
    """First record of a journal. `run` is the part of every forest id that names the run; `session` see `Resumed`."""

    run: str
    session: str = ""
    format: int = FORMAT


@dataclass(frozen=True, slots=True)
class Reserved:
    """A prompt was given to a worker; a slot is held from here on. `request` is the worker's own name of the call ("" if it has
    none)."""

    forest_id: str
    draw: int
    attempt: int
    failures: int  # attempts of this draw that failed before
    worker: str
    request: str
    prompt_id: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where a payload lies. offset, length in bytes of the encapsulated Arrow message, `crc` its CRC-32."""

    segment: str
    offset: int
    length: int
    crc: int


@dataclass(frozen=True, slots=True)
class Admitted:
    """A graded forest is in a segment. `mass` is sum |R - mean R| over leaves; offset, length in bytes; `payload_crc` is of those
    bytes."""

    forest_id: str
    leaves: int
    tokens: int
    oldest_version: int
    newest_version: int
    reward: float  # mean over leaves
    mass: float
    segment: str
    offset: int
    length: int
    payload_crc: int

    @property
    def place(self) -> Place:
        return Place(self.segment, self.offset, self.length, self.payload_crc)


@dataclass(frozen=True, slots=True)
class Leased:
    """Forests went to the learner, in this order. `deadline` in seconds of the clock that the queue is given."""

    lease_id: str
    forest_ids: tuple[str, ...]
    version: int
    deadline: float


@dataclass(frozen=True, slots=True)
class Acked:
    """The optimizer step that used the lease is done: its slots are free. The forests stay leased until the step is durable."""

    lease_id: str
    step: int


@dataclass(frozen=True, slots=True)
class Returned:
    """A lease ended without a step: its forests are ready again, at their old place."""

    lease_id: str
    reason: Literal["nack", "expired"]


@dataclass(frozen=True, slots=True)
class Dropped:
    """A forest will not be trained. With `refill` its prompt goes out again as the next attempt of the same draw."""

    forest_id: str
    reason: DropReason
    detail: str
    refill: bool


@dataclass(frozen=True, slots=True)
class Committed:
    """Every step up to this one is in a durable checkpoint."""

    step: int


@dataclass(frozen=True, slots=True)
class Resumed:
    """The run starts again from the checkpoint of `step`: what was leased since is ready, in the order of its leases, and what
    was reserved goes out again.

    `session` names the start of the run that asked for it: a queue that is opened again under that name goes on as things stand.
    """

    step: int
    session: str = ""


@dataclass(frozen=True, slots=True)
class Released:
    """These segments are deleted: they hold only forests that are finished."""

    segments: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The whole state, in place of all records before it; `ledger` as `Ledger.to_state` gives it."""

    ledger: dict[str, Any]
    format: int = FORMAT


Record = Opened | Reserved | Admitted | Leased | Acked | Returned | Dropped | Committed | Resumed | Released | Snapshot
_KINDS: dict[str, type] = {k.__name__.lower(): k for k in Record.__args__}  # type: ignore[attr-defined]
_FIELDS = {k: tuple(f.name for f in fields(k)) for k in _KINDS.values()}
_NEWER = {k: {f.name for f in fields(k) if f.default is not MISSING} for k in _KINDS.values()}  # older releases wrote none


def to_dict(record: Record) -> dict[str, Any]:
    """JSON-able form, with the type's name in lower case as `kind`."""
    kind = type(record)
    return {"kind": kind.__name__.lower(), **{n: getattr(record, n) for n in _FIELDS[kind]}}


def from_dict(tree: dict[str, Any]) -> Record:
    """Inverse of `to_dict`; raises ValueError for a kind or field that this release does not know."""
    values = dict(tree)
    kind = _KINDS.get(values.pop("kind", ""))
    if kind is None or not values.keys() <= set(_FIELDS[kind]) or not set(_FIELDS[kind]) - _NEWER[kind] <= values.keys():
        raise ValueError(f"unknown record {tree.get('kind')!r} with fields {sorted(values)}")
    return kind(**{n: tuple(v) if isinstance(v, list) else v for n, v in values.items()})


def forest_id(run: str, draw: int, attempt: int) -> str:
    """The same (run, draw, attempt) has the same id, so a repeat is recognised; a new attempt has a new one, so a late answer is
    too."""
    return f"{run}-{draw:06d}-{attempt}"
