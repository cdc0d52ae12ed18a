"""The journal: one JSON line for each transition, in append-only files (parts) `0000000001.jsonl`, `0000000002.jsonl`.

    {"crc":"1c291ca3","seq":7,"t":1700000000.25,"kind":"acked","lease_id":"lease-000001","step":3}

`crc` is the CRC-32 of everything after the field `crc`. `seq` counts records over all parts without a gap. `t` is the
time in seconds since 1970. A part `0000000007.snapshot.jsonl` holds the state after record 7, so a start reads no
earlier part. A writer always starts a new part. In an object store the name of a part contains the writer's session
(`0000000007-000002-1f2e3d4c.jsonl`). A crash may tear the last record; the next start cuts the torn record off and
reports it. A damaged record before undamaged records is reported and not repaired.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from treeadv.errors import BadInput
from treeadv.replay.records import FORMAT, Record, Snapshot, from_dict, to_dict
from treeadv.storage.folder import Action, AppendFile, Deletion, Folder, WholeFile
from treeadv.storage.sessions import session_in

SUFFIX = ".jsonl"
SNAPSHOT = ".snapshot.jsonl"
_REWRITE_BELOW = 1 << 18  # bytes: each flush rewrites the last object until it has this size
_TRIES = 10
_HEAD = len('{"crc":"00000000",')


@dataclass(frozen=True, slots=True)
class Line:
    """One record of the journal, with its number and time."""

    seq: int
    t: float
    record: Record


@dataclass(frozen=True, slots=True)
class TornRecord:
    """The incomplete last record of a part: the `lost` bytes from `offset` on."""

    part: str
    offset: int
    lost: int


def encode(line: Line) -> bytes:
    rest = json.dumps({"seq": line.seq, "t": line.t, **to_dict(line.record)}, separators=(",", ":"))[1:].encode()
    return b'{"crc":"%08x",%b\n' % (zlib.crc32(rest), rest)


def _is_sound(raw: bytes) -> bool:
    return raw[:_HEAD] == b'{"crc":"%08x",' % zlib.crc32(raw[_HEAD:])


@dataclass(frozen=True, slots=True, order=True)
class _Part:
    """The name of a part, parsed. Parts sort in the order of their records."""

    session: str  # "" on a local disk; sessions sort in the order of their starts
    number: int
    name: str

    @classmethod
    def parse(cls, name: str) -> _Part:
        return cls(session_in(name), int(name.partition(".")[0].partition("-")[0]), name)


class Reader:
    """Iterates over the lines of a journal. The files are not changed, so the run may continue.

    `torn` is set at the end if the last record is incomplete. In an object store a writer may still write after another
    session has opened the run. The reader then ignores records of the earlier session whose number is not below the
    first number of the later session.

    Raises `BadInput` for a damaged record before undamaged records, a gap, or a journal of another format.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        for _ in range(_TRIES):  # a snapshot of the live run may replace parts during the read
            self.sizes = folder.sizes(SUFFIX)
            self.parts = _current(self.sizes)
            try:
                self._data = self._fetch()
            except FileNotFoundError:
                continue
            now = folder.sizes(SUFFIX)
            if now.keys() >= set(self.parts) and _current(now)[:1] == self.parts[:1]:
                break
        else:
            raise BadInput(f"{folder.uri}: the parts were replaced {_TRIES} times during the read; try again")
        self.size = sum(map(len, self._data))  # bytes
        self.seq = 0  # number of the last record read
        self.torn: TornRecord | None = None
        self.ignored = 0  # parts with ignored records
        self._ends = self._session_ends()

    def _fetch(self) -> list[bytes]:
        return self._folder.read_all(self.parts)

    def _session_ends(self) -> dict[str, float]:
        """Return the number of the first ignored record of each session."""
        begins: dict[str, float] = {}
        for part, data in zip(map(_Part.parse, self.parts), self._data, strict=True):
            raw = data.partition(b"\n")[0]
            if part.session not in begins and _is_sound(raw):
                begins[part.session] = json.loads(raw)["seq"] + part.name.endswith(SNAPSHOT)
        ends, end = {}, math.inf
        for session in sorted({_Part.parse(p).session for p in self.parts}, reverse=True):
            ends[session] = end
            end = min(end, begins.get(session, math.inf))
        return ends

    def __iter__(self) -> Iterator[Line]:
        for index, (part, data) in enumerate(zip(self.parts, self._data, strict=True)):
            end_of_session = self._ends[_Part.parse(part).session]
            start = 0
            while start < len(data):
                end = data.find(b"\n", start)
                raw = data[start : end if end >= 0 else len(data)]
                if end < 0 or not _is_sound(raw):
                    self._fault(index, data, start, end)
                    return
                tree = json.loads(raw)
                if tree["seq"] >= end_of_session:
                    self.ignored += 1
                    break
                yield self._line(tree, part, start)
                start = end + 1

    def _line(self, tree: dict[str, Any], part: str, offset: int) -> Line:
        del tree["crc"]
        seq, t = tree.pop("seq"), tree.pop("t")
        if part.endswith(SNAPSHOT):
            self.seq = seq - 1
        where = f"{self._folder.uri}/{part} byte {offset}"
        if seq != self.seq + 1:
            raise BadInput(f"{where}: record {seq} follows record {self.seq}; restore the missing part from a backup")
        if tree["kind"] in ("opened", "snapshot") and tree["format"] != FORMAT:
            found = f"journal format {tree['format']}, this release reads {FORMAT}"
            raise BadInput(f"{where}: {found}; use the release of treeadv that wrote the journal")
        try:
            record = from_dict(tree)
        except ValueError as e:
            raise BadInput(f"{where}: {e}; use the release of treeadv that wrote the journal") from e
        self.seq = seq
        return Line(seq, t, record)

    def _fault(self, index: int, data: bytes, start: int, end: int) -> None:
        """Set `torn` for a torn last record. Raises `BadInput` if undamaged records follow the damaged record."""
        part = self.parts[index]
        later = [data[end + 1 :]] if end >= 0 else []
        later += self._data[index + 1 :]
        if any(_is_sound(raw) for text in later for raw in text.split(b"\n")):
            raise BadInput(
                f"{self._folder.uri}/{part}: record {self.seq + 1} at "
                f"byte {start} is damaged (checksum), records 1 to {self.seq}"
                " are undamaged; restore the part from a backup, or truncate the part "
                f"to {start} bytes, delete all later parts and resume from a"
                " checkpoint of an earlier step"
            )
        self.torn = TornRecord(part, start, len(data) - start)


def _current(names: Iterable[str]) -> list[str]:
    """Return the last snapshot and the parts after it, in order; all parts if no part is a snapshot."""
    parts = sorted(map(_Part.parse, names))
    first = max((p for p in parts if p.name.endswith(SNAPSHOT)), default=None)
    return [p.name for p in parts if first is None or p >= first]


class Journal:
    """Appends records. A record is durable when the actions of a later call of `pending` have run."""

    def __init__(self, folder: Folder, reader: Reader, session: str, check: Action) -> None:
        """Continue after the last record that `reader` has read. `reader` must be at its end.

        Cuts off a torn record and flushes records that the previous process may not have flushed. `check` raises if
        another process owns the run.
        """
        self._folder, self._check = folder, check
        self._part: AppendFile | None = None
        self._dirty = False
        self._closed = False
        self._tail = folder.writer_tag(session)
        self._names = list(reader.sizes)
        self._number = max((_Part.parse(n).number for n in self._names), default=0)
        self.seq = reader.seq
        self.size = reader.size  # bytes that the next start reads
        if reader.torn:
            folder.truncate(reader.torn.part, reader.torn.offset)
        elif reader.parts:
            folder.sync(reader.parts[-1])

    def append(self, record: Record, t: float) -> None:
        """Write one record. Raises `BadInput` if the write fails; the journal is then unchanged."""
        if self._closed:
            raise RuntimeError(f"{self._folder.uri}: the journal is closed; another process may own the run now")
        if self._part is None:
            self._part = self._folder.create(self._next(SUFFIX), _REWRITE_BELOW)
        line = encode(Line(self.seq + 1, t, record))
        self._part.write(line)
        self.seq += 1
        self.size += len(line)
        self._dirty = True

    def pending(self) -> list[Action]:
        """Return the actions that make all records durable; [] if all records are durable. The caller runs them."""
        part = self._part
        if not self._dirty or part is None:
            return []
        self._dirty = False
        if part.ends_with_flush:
            part.seal()
            self._part = None
        return [part.pending()]

    def snapshot(self, state: Snapshot, t: float) -> list[Action]:
        """Return the actions that replace all parts by a snapshot of the state. All records must be durable.

        Later records go to a new part, so the caller may write records while the actions run.
        """
        old, line = tuple(self._names), encode(Line(self.seq, t, state))
        sealed: list[Action] = []
        if self._part is not None:
            self._part.seal()
            sealed = [self._part.pending()]
        self._part = None
        name = self._next(SNAPSHOT)
        self._names = [name]
        self.size = len(line)
        return [*sealed, WholeFile(self._folder, name, line), Deletion(self._folder, old, self._check)]

    def close(self) -> None:
        self._closed = True
        if self._part is not None:
            self._part.close()
            self._part = None

    def _next(self, suffix: str) -> str:
        self._number += 1
        name = f"{self._number:010d}{self._tail}{suffix}"
        self._names.append(name)
        return name
