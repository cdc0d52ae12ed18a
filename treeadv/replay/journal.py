"""The journal: one JSON line a transition, numbered and checksummed, in append-only parts `000001.jsonl`, ... that DuckDB and
polars read.

    {"crc":"1c291ca3","seq":7,"t":1700000000.25,"kind":"acked","lease_id":"lease-000001","step":3}

`crc` is CRC-32 of everything after its own field, `seq` counts records over all parts without a gap, `t` is seconds since 1970. A
part `000007.snapshot.jsonl` holds the state at its time and replaces the parts before it. A writer always starts a new part. The
last record may be torn by a crash: it is cut off and reported. A damaged record with sound ones behind it is not repaired but
named.
"""

from __future__ import annotations

import fcntl
import json
import os
import uuid
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from treeadv.errors import BadInput
from treeadv.replay.files import Folder, Part
from treeadv.replay.records import FORMAT, Record, Snapshot, from_dict, to_dict

SUFFIX = ".jsonl"
SNAPSHOT = ".snapshot.jsonl"
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


class Reader:
    """Iterates over the lines of a journal; `torn` tells afterwards whether the last record was cut short. Nothing is changed.

    Raises `BadInput` for a damaged record that has sound ones behind it, a gap, or a journal of a newer release.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        sizes = folder.sizes(SUFFIX)
        first = max((n for n in sizes if n.endswith(SNAPSHOT)), default="")
        self.parts = [n for n in sizes if n >= first]
        self.size = sum(sizes[n] for n in self.parts)  # bytes
        self.seq = 0  # of the last record read
        self.torn: Torn | None = None

    def __iter__(self) -> Iterator[Line]:
        for place, part in enumerate(self.parts):
            data = self._folder.read(part).to_pybytes()
            at = 0
            while at < len(data):
                end = data.find(b"\n", at)
                raw = data[at : end if end >= 0 else len(data)]
                if end < 0 or not _is_sound(raw):
                    self._fault(place, data, at, end)
                    return
                yield self._line(raw, part, at)
                at = end + 1

    def _line(self, raw: bytes, part: str, at: int) -> Line:
        tree = json.loads(raw)
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
        behind += [self._folder.read(p).to_pybytes() for p in self.parts[place + 1 :]]
        if any(_is_sound(raw) for text in behind for raw in text.split(b"\n")):
            raise BadInput(
                f"{self._folder.uri}/{part}: record {self.seq + 1} at byte {at} is damaged (checksum), 1 to {self.seq} are"
                f" intact; restore the part from a copy, or cut it at byte {at}, delete later parts, resume from a checkpoint"
                " of that time"
            )
        self.torn = Torn(part, at, len(data) - at)


class Journal:
    """The writing end. `append` hands a record to the operating system; it is durable once the parts of `pending` are flushed."""

    def __init__(self, folder: Folder, reader: Reader) -> None:
        """Go on behind what `reader` has read to its end; a torn record is cut off, and what the process before may have left unflushed
        is made durable before records stand behind it."""
        self._folder = folder
        self._part: Part | None = None
        self._dirty = False
        self._closed = False
        self._number = int(reader.parts[-1].partition(".")[0]) if reader.parts else 0
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
            self._number += 1
            self._part = self._folder.create(f"{self._number:06d}{SUFFIX}")
        line = encode(Line(self.seq + 1, t, record))
        self._part.write(line)
        self.seq += 1
        self.size += len(line)
        self._dirty = True

    def pending(self) -> list[Part]:
        """The part with records that are not durable yet, if any. The caller flushes it."""
        if not self._dirty or self._part is None:
            return []
        part, self._dirty = self._part, False
        if self._folder.local is None:
            part.seal()
            self._part = None
        return [part]

    def replace(self, snapshot: Snapshot, t: float) -> None:
        """Put the state in place of all parts so far, which are deleted. All records must be durable."""
        self._end_part()
        self._number += 1
        line, name = encode(Line(self.seq + 1, t, snapshot)), f"{self._number:06d}{SNAPSHOT}"
        self._folder.write_whole(name, line)
        self.seq += 1
        self.size = len(line)
        for old in self._folder.sizes(SUFFIX):
            if old < name:
                self._folder.delete(old)

    def close(self) -> None:
        self._closed = True
        self._end_part()

    def _end_part(self) -> None:
        if self._part is not None:
            self._part.close()
            self._part = None


class Lock:
    """Only one process may write a run. A local folder is locked until that process ends, however it ends.

    An object store has no such lock: there whoever opens the run last has it, and the one before (a driver that was taken for dead, a
    pod in its grace period) finds that out by the `sync` that goes before each of its writes.
    """

    def __init__(self, folder: Folder) -> None:
        self._fd: int | None = None
        self._folder = folder
        self._token = uuid.uuid4().bytes
        if folder.local is None:
            folder.write_whole("lock", self._token)
            return
        self._fd = os.open(folder.local / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            holder = os.read(self._fd, 64).decode() or "another process"
            os.close(self._fd)
            raise BadInput(f"{folder.uri}: in use by {holder}; stop that run or choose another run.name") from e
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"process {os.getpid()}".encode(), 0)

    def sync(self) -> None:
        """`BadInput` if the run is another's by now."""
        if self._folder.local is None and self._folder.read("lock").to_pybytes() != self._token:
            raise BadInput(f"{self._folder.uri}: another process has opened this run and goes on with it; this one stops")

    def release(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
