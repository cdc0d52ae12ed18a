"""The journal: one JSON line for each transition, in append-only files (parts) `0000000001.jsonl`, `0000000002.jsonl`.

    {"crc":"1c291ca3","seq":7,"t":1700000000.25,"kind":"acked","lease_id":"lease-000001","step":3}

`crc` is the CRC-32 of all bytes of the line after its own field. `seq` counts the records over all parts without a gap.
`t` is the time in seconds since 1970. A part `0000000007.snapshot.jsonl` holds the state after the last record of the
parts before it, so a start reads no earlier part. A writer always starts a new part. In an object store the name of the
part contains the session of the writer (`0000000007-000002-1f2e3d4c.jsonl`). A crash may tear the last record; the next
start cuts it off and reports it. A damaged record before undamaged records is reported and not repaired.
"""

from __future__ import annotations

import io
import json
import math
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from treeadv.errors import BadInput
from treeadv.jsonl import JsonObject
from treeadv.replay.records import FORMAT, Record, Snapshot, from_dict, to_dict
from treeadv.storage.folder import Action, AppendFile, Deletion, Folder, TooShort, WholeFile
from treeadv.storage.sessions import session_in

SUFFIX = ".jsonl"
SNAPSHOT = ".snapshot.jsonl"
_REWRITE_BELOW = 1 << 18  # bytes; each flush rewrites the last object until the object has this size
_TRIES = 10
_BLOCK = 1 << 20  # bytes that are read at a time
_OPEN = 64  # number of parts that are open at a time when a whole journal is read
_HEAD = len('{"crc":"00000000",')


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One record of the journal, with its number and time."""

    seq: int
    t: float
    record: Record


@dataclass(frozen=True, slots=True, kw_only=True)
class TornRecord:
    """The incomplete last record of a part: the `lost` bytes from `offset` on."""

    part_name: str
    offset: int
    lost: int


def encode(line: Line) -> bytes:
    rest = json.dumps({"seq": line.seq, "t": line.t, **to_dict(line.record)}, separators=(",", ":"))[1:].encode()
    return b'{"crc":"%08x",%b\n' % (zlib.crc32(rest), rest)


def _is_sound(raw: bytes) -> bool:
    return raw[:_HEAD] == b'{"crc":"%08x",' % zlib.crc32(raw[_HEAD:])


@dataclass(frozen=True, slots=True, order=True)
class _PartName:
    """The parsed name of a part. Parts sort in the order of their records."""

    session: str  # "" on a local disk; sessions sort in the order of their starts
    number: int
    name: str

    @classmethod
    def parse(cls, name: str) -> _PartName:
        return cls(session_in(name), int(name.partition(".")[0].partition("-")[0]), name)


class Reader:
    """An iterator over the lines of a journal. It does not change the files, so the run may continue.

    The reader starts from the last snapshot. With `whole` it starts from the first kept record and skips all later
    snapshots. After the iteration `torn` describes a last record that was cut short. In an object store a writer may
    continue to write after another session has opened the run. The reader ignores these records: from the first record
    of a session on, records of earlier sessions with the same or a higher number do not count.

    Raises `BadInput` for a damaged record before undamaged records, a gap, or a journal of another format."""

    def __init__(self, folder: Folder, whole: bool = False) -> None:
        self._folder = folder
        for _ in range(_TRIES):  # repeated, because a snapshot of the live run may replace parts during the read
            self.sizes = folder.sizes(SUFFIX)
            try:
                self.parts = self._start(whole)
                self._opened = folder.open_all(self.parts[:_OPEN] if whole else self.parts)
            except (FileNotFoundError, TooShort):
                continue
            now = folder.sizes(SUFFIX)
            if now.keys() >= set(self.parts) and (whole or _current(now)[:1] == self.parts[:1]):
                break
        else:
            raise BadInput(f"{folder.uri}: the parts were replaced {_TRIES} times during the read; try again")
        self.size = sum(self.sizes[part_name] for part_name in self.parts)  # bytes
        self.seq = 0  # number of the last record that was read
        self.torn: TornRecord | None = None
        self.ignored = 0  # number of parts with records that do not count
        self._ends = self._session_ends()

    def _start(self, whole: bool) -> list[str]:
        """Return the names of the parts to read.

        A whole journal begins with its first record or with a snapshot. An interrupted deletion may have left parts
        that begin with neither; the reader then starts from the last snapshot."""
        every = [p.name for p in sorted(map(_PartName.parse, self.sizes))]
        if whole and every and (every[0].endswith(SNAPSHOT) or self._first(every[0]).get("seq") == 1):
            return every
        return _current(self.sizes)

    def _first(self, part_name: str) -> JsonObject:
        """Return the first record of a part as JSON; {} if the record is damaged."""
        with self._folder.open_all([part_name])[0] as file:
            return _parsed(next(_lines(file, self.sizes[part_name]), b"").rstrip(b"\n"))

    def _session_ends(self) -> dict[str, float]:
        """Return the number of the first ignored record of each session."""
        begins: dict[str, float] = {}
        for part_name in map(_PartName.parse, self.parts):
            if part_name.session not in begins and (first := self._first(part_name.name)):
                begins[part_name.session] = first["seq"] + part_name.name.endswith(SNAPSHOT)
        ends, end = {}, math.inf
        for session in sorted({_PartName.parse(p).session for p in self.parts}, reverse=True):
            ends[session] = end
            end = min(end, begins.get(session, math.inf))
        return ends

    def __iter__(self) -> Iterator[Line]:
        for part_name, file in self._files():
            end_of_session = self._ends[_PartName.parse(part_name).session]
            start = 0
            for raw in _lines(file, self.sizes[part_name]):
                tree = _parsed(raw[:-1]) if raw.endswith(b"\n") else {}
                if not tree:
                    self._fault(part_name, start, len(raw))
                    return
                if tree["seq"] >= end_of_session:
                    self.ignored += 1
                    break
                if not (part_name.endswith(SNAPSHOT) and 0 < self.seq == tree["seq"]):
                    yield self._line(tree, part_name, start)
                start += len(raw)

    def _files(self) -> Iterator[tuple[str, pa.NativeFile]]:
        """Yield each part with its open file. The parts of a whole journal are opened a few at a time."""
        yield from zip(self.parts, self._opened, strict=False)
        for at in range(len(self._opened), len(self.parts), _OPEN):
            names = self.parts[at : at + _OPEN]
            yield from zip(names, self._folder.open_all(names), strict=True)

    def _line(self, tree: JsonObject, part_name: str, offset: int) -> Line:
        del tree["crc"]
        seq, t = tree.pop("seq"), tree.pop("t")
        if part_name.endswith(SNAPSHOT):
            self.seq = seq - 1
        where = f"{self._folder.uri}/{part_name} byte {offset}"
        if seq != self.seq + 1:
            raise BadInput(f"{where}: record {seq} follows record {self.seq}; restore the missing part from a backup")
        if tree.get("kind") in ("opened", "snapshot") and tree.get("format") != FORMAT:
            found = f"journal format {tree.get('format')!r:.20}, this release reads {FORMAT}"
            raise BadInput(f"{where}: {found}; use the release of treeadv that wrote the journal")
        try:
            record = from_dict(tree)
        except ValueError as e:
            raise BadInput(f"{where}: {e}; use the release of treeadv that wrote the journal") from e
        self.seq = seq
        return Line(seq=seq, t=t, record=record)

    def _fault(self, part_name: str, start: int, length: int) -> None:
        """Note a torn last record. Raises `BadInput` if undamaged records follow."""
        later = self.parts[self.parts.index(part_name) :]
        for name, file in zip(later, self._folder.open_all(later), strict=True):
            rest = _lines(file, self.sizes[name], start + length if name == part_name else 0)
            if any(_parsed(raw.rstrip(b"\n")) for raw in rest):
                raise BadInput(
                    f"{self._folder.uri}/{part_name}: record {self.seq + 1} at "
                    f"byte {start} is damaged (checksum), records 1 to {self.seq}"
                    " are undamaged; restore the part from a backup, or truncate the part "
                    f"to {start} bytes, delete all later parts and resume from a"
                    " checkpoint of an earlier step"
                )
        self.torn = TornRecord(part_name=part_name, offset=start, lost=self.sizes[part_name] - start)


def _lines(file: pa.NativeFile, end: int, start: int = 0) -> Iterator[bytes]:
    """Yield the lines between two bytes of a part, with their line ends. Only one block of the file is in memory.

    `end` is the size that the part had when the journal was opened. A live writer may have written more bytes since."""
    file.seek(min(start, end))
    with io.BufferedReader(file, _BLOCK) as lines:
        for line in lines:
            yield line[: end - start]
            start += len(line)
            if start >= end:
                return


def _parsed(raw: bytes) -> JsonObject:
    """Return the JSON of a line with a correct checksum; {} for any other line."""
    if not _is_sound(raw):
        return {}
    try:
        tree = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    return tree if type(tree.get("seq")) is int and type(tree.get("t")) in (int, float) else {}


def _current(names: Iterable[str]) -> list[str]:
    """Return the last snapshot and the parts after it, in order; all parts if no part is a snapshot."""
    parts = sorted(map(_PartName.parse, names))
    first = max((p for p in parts if p.name.endswith(SNAPSHOT)), default=None)
    return [p.name for p in parts if first is None or p >= first]


class Journal:
    """The writer of a journal. A record is durable when the actions of a later call of `pending` have run."""

    def __init__(self, folder: Folder, reader: Reader, session: str, check: Action) -> None:
        """Continue after the last record that `reader` has read. `reader` must be at its end.

        Cuts off a torn record and flushes records that the previous process may not have flushed. `check` raises if
        another process owns the run.
        """
        self._folder, self._check = folder, check
        self._open_part: AppendFile | None = None
        self._dirty = False
        self._closed = False
        self._tail = folder.writer_tag(session)
        self._names = list(reader.sizes)
        self._number = max((_PartName.parse(n).number for n in self._names), default=0)
        self.seq = reader.seq
        self.size = reader.size  # number of bytes that a start reads
        self.base = sum(
            reader.sizes[part_name] for part_name in reader.parts if part_name.endswith(SNAPSHOT)
        )  # bytes of snapshots
        self.disk_bytes = sum(reader.sizes.values())  # bytes of all parts
        if reader.torn:
            folder.truncate(reader.torn.part_name, reader.torn.offset)
        elif reader.parts:
            folder.sync(reader.parts[-1])

    def append(self, records: Sequence[Record], t: float) -> None:
        """Write records in one piece. Raises `BadInput` if the write fails; the journal is then unchanged."""
        if self._closed:
            raise RuntimeError(f"{self._folder.uri}: the journal is closed; another process may own the run now")
        if self._open_part is None:
            self._open_part = self._folder.create(self._next(SUFFIX), _REWRITE_BELOW)
        lines = b"".join(encode(Line(seq=seq, t=t, record=record)) for seq, record in enumerate(records, self.seq + 1))
        self._open_part.write(lines)
        self.seq += len(records)
        self.size += len(lines)
        self.disk_bytes += len(lines)
        self._dirty = True

    def pending(self) -> list[Action]:
        """Return the actions that make all records durable; [] if all records are durable. The caller runs them."""
        open_part = self._open_part
        if not self._dirty or open_part is None:
            return []
        self._dirty = False
        if open_part.ends_with_flush:
            open_part.seal()
            self._open_part = None
        return [open_part.pending()]

    def snapshot(self, state: Snapshot, t: float, keep: bool) -> list[Action]:
        """Return the actions that write `state` as a snapshot, from which later starts continue.

        Unless `keep` is true, the actions also delete all earlier parts. The caller must make all records durable
        before it runs the actions. Later records go to a new part, so the caller may write records while the actions
        run."""
        old, line = tuple(self._names), encode(Line(seq=self.seq, t=t, record=state))
        sealed: list[Action] = []
        if self._open_part is not None:
            self._open_part.seal()
            sealed = [self._open_part.pending()]
        self._open_part = None
        name = self._next(SNAPSHOT)
        self.size = self.base = len(line)
        written: list[Action] = [*sealed, WholeFile(folder=self._folder, name=name, data=line)]
        if keep:
            self.disk_bytes += len(line)
            return written
        self._names, self.disk_bytes = [name], len(line)
        return [*written, Deletion(folder=self._folder, names=old, check=self._check)]

    def close(self) -> None:
        self._closed = True
        if self._open_part is not None:
            self._open_part.close()
            self._open_part = None

    def _next(self, suffix: str) -> str:
        self._number += 1
        name = f"{self._number:010d}{self._tail}{suffix}"
        self._names.append(name)
        return name
