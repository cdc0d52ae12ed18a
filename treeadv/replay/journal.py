"""The journal: one JSON line a transition, numbered and checksummed, in append-only parts `0000000001.jsonl`, ... that DuckDB and
polars read.

    {"crc":"1c291ca3","seq":7,"t":1700000000.25,"kind":"acked","lease_id":"lease-000001","step":3}

`crc` is CRC-32 of everything after its own field, `seq` counts records over all parts without a gap, `t` is seconds since 1970. A
part `0000000007.snapshot.jsonl` holds the state after the record whose number it bears, in place of the parts before it. A writer
always starts a new part, in an object store with its session in the name (`0000000007-000002-1f2e3d4c.jsonl`). The last record may be
torn by a crash: it is cut off and reported. A damaged record with sound ones behind it is not repaired but named.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from treeadv.errors import BadInput
from treeadv.replay.records import FORMAT, Record, Snapshot, from_dict, to_dict
from treeadv.storage.folder import Deletion, Folder, Part, RemotePart, Syncable, WholeFile
from treeadv.storage.lock import session_in

SUFFIX = ".jsonl"
SNAPSHOT = ".snapshot.jsonl"
_PART_BYTES = 1 << 18  # an object that is written again with each flush grows no further
_AT_ONCE = 16  # objects fetched at the same time
_TRIES = 10
_HEAD = len('{"crc":"00000000",')


@dataclass(frozen=True, slots=True)
class Line:
    """One record as it stands in the journal."""

    seq: int
    t: float
    record: Record


@dataclass(frozen=True, slots=True)
class Torn:
    """The unfinished last record of a part: `lost` bytes from `offset` on."""

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
    """A part by its name. In an object store that names the session of its writer too, so that two writers never write one object."""

    session: str  # "" on a local disk; else they sort as they began
    number: int
    name: str

    @classmethod
    def of(cls, name: str) -> _Part:
        return cls(session_in(name), int(name.partition(".")[0].partition("-")[0]), name)


class Reader:
    """Iterates over the lines of a journal; `torn` tells afterwards whether the last record was cut short. Nothing is changed, and
    the run may go on meanwhile.

    In an object store a writer may still write when another has opened the run. Where the records of a later session begin, those
    with that number or a higher one of earlier sessions do not count.

    Raises `BadInput` for a damaged record that has sound ones behind it, a gap, or a journal of a newer release.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        for _ in range(_TRIES):  # a snapshot may take the place of parts while they are read
            self.sizes = folder.sizes(SUFFIX)
            self.parts = _standing(self.sizes)
            try:
                self._data = self._fetch()
            except FileNotFoundError:
                continue
            now = folder.sizes(SUFFIX)
            if now.keys() >= set(self.parts) and _standing(now)[:1] == self.parts[:1]:
                break
        else:
            raise BadInput(f"{folder.uri}: its parts were replaced {_TRIES} times while they were read; try again")
        self.size = sum(map(len, self._data))  # bytes
        self.seq = 0  # of the last record read
        self.torn: Torn | None = None
        self.ignored = 0  # parts with records that do not count
        self._ends = self._session_ends()

    def _fetch(self) -> list[bytes]:
        if self._folder.local:
            return [self._folder.read(part).to_pybytes() for part in self.parts]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return list(pool.map(lambda part: self._folder.read(part).to_pybytes(), self.parts))

    def _session_ends(self) -> dict[str, float]:
        """The number of the first record of each session that does not count any more."""
        begins: dict[str, float] = {}
        for part, data in zip(map(_Part.of, self.parts), self._data, strict=True):
            raw = data.partition(b"\n")[0]
            if part.session not in begins and _is_sound(raw):
                begins[part.session] = json.loads(raw)["seq"] + part.name.endswith(SNAPSHOT)
        ends, end = {}, math.inf
        for session in sorted({_Part.of(p).session for p in self.parts}, reverse=True):
            ends[session] = end
            end = min(end, begins.get(session, math.inf))
        return ends

    def __iter__(self) -> Iterator[Line]:
        for place, (part, data) in enumerate(zip(self.parts, self._data, strict=True)):
            end_of_session = self._ends[_Part.of(part).session]
            at = 0
            while at < len(data):
                end = data.find(b"\n", at)
                raw = data[at : end if end >= 0 else len(data)]
                if end < 0 or not _is_sound(raw):
                    self._fault(place, data, at, end)
                    return
                tree = json.loads(raw)
                if tree["seq"] >= end_of_session:
                    self.ignored += 1
                    break
                yield self._line(tree, part, at)
                at = end + 1

    def _line(self, tree: dict[str, Any], part: str, at: int) -> Line:
        del tree["crc"]
        seq, t = tree.pop("seq"), tree.pop("t")
        if part.endswith(SNAPSHOT):
            self.seq = seq - 1
        at_byte = f"{self._folder.uri}/{part} byte {at}"
        if seq != self.seq + 1:
            raise BadInput(f"{at_byte}: record {seq} follows record {self.seq}; restore the missing part from a copy")
        if tree["kind"] in ("opened", "snapshot") and tree["format"] > FORMAT:
            raise BadInput(f"{at_byte}: journal format {tree['format']}, the newest known here is {FORMAT}; upgrade treeadv")
        try:
            record = from_dict(tree)
        except ValueError as e:
            raise BadInput(f"{at_byte}: {e}; this release cannot read it, use the one that wrote it") from e
        self.seq = seq
        return Line(seq, t, record)

    def _fault(self, place: int, data: bytes, at: int, end: int) -> None:
        """Torn if nothing sound follows, else damaged."""
        part = self.parts[place]
        behind = [data[end + 1 :]] if end >= 0 else []
        behind += self._data[place + 1 :]
        if any(_is_sound(raw) for text in behind for raw in text.split(b"\n")):
            raise BadInput(
                f"{self._folder.uri}/{part}: record {self.seq + 1} at byte {at} is damaged (checksum), 1 to {self.seq} are"
                f" intact; restore the part from a copy, or cut it at byte {at}, delete later parts, resume from a checkpoint"
                " of that time"
            )
        self.torn = Torn(part, at, len(data) - at)


def _standing(names: Iterable[str]) -> list[str]:
    """The last snapshot and the parts behind it, in order; all parts if there is none."""
    parts = sorted(map(_Part.of, names))
    first = max((p for p in parts if p.name.endswith(SNAPSHOT)), default=None)
    return [p.name for p in parts if first is None or p >= first]


class Journal:
    """The writing end. `append` hands a record to the operating system; it is durable once the parts of `pending` are flushed.

    In an object store a part is written again with each flush until it is large: few objects, however long the run.
    """

    def __init__(self, folder: Folder, reader: Reader, session: str, look: Callable[[], None]) -> None:
        """Go on behind what `reader` has read to its end; a torn record is cut off, and what the process before may have left unflushed
        is made durable before records stand behind it. `look` raises when the run is another's by now."""
        self._folder, self._look = folder, look
        self._part: Part | None = None
        self._dirty = False
        self._closed = False
        self._tail = "" if folder.local else f"-{session}"
        self._names = list(reader.sizes)
        self._number = max((_Part.of(n).number for n in self._names), default=0)
        self.seq = reader.seq
        self.size = reader.size  # bytes, of what a start reads
        if reader.torn:
            folder.truncate(reader.torn.part, reader.torn.offset)
        elif reader.parts:
            folder.sync(reader.parts[-1])

    def append(self, record: Record, t: float) -> None:
        """Write one record. `BadInput` if the disk is full; the journal is then as before."""
        if self._closed:
            raise RuntimeError(f"{self._folder.uri}: the journal is closed, the run may be another's by now")
        if self._part is None:
            self._part = self._folder.create(self._next(SUFFIX))
        line = encode(Line(self.seq + 1, t, record))
        self._part.write(line)
        self.seq += 1
        self.size += len(line)
        self._dirty = True

    def pending(self) -> list[Syncable]:
        """What makes the records so far durable, if they are not. The caller flushes it."""
        if not self._dirty or self._part is None:
            return []
        self._dirty = False
        part = self._part
        if not isinstance(part, RemotePart):
            return [part]
        if part.size >= _PART_BYTES:
            self._part = None
        return [part.so_far()]

    def snapshot(self, state: Snapshot, t: float) -> list[Syncable]:
        """What puts the state in place of all parts so far; all records must be durable before it is flushed. Later records go to a new
        part, so that they may be written meanwhile."""
        old, line = tuple(self._names), encode(Line(self.seq, t, state))
        sealed: list[Syncable] = []
        if self._part is not None and self._folder.local:
            self._part.seal()
            sealed = [self._part]
        self._part = None
        name = self._next(SNAPSHOT)
        self._names = [name]
        self.size = len(line)
        return [*sealed, WholeFile(self._folder, name, line), Deletion(self._folder, old, self._look)]

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
