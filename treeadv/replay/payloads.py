"""The payload: Arrow IPC stream files `0000000001.arrow`, one record batch a forest, each addressed by segment, offset and length.

In an object store each flush makes one, with the session of its writer in its name: what a writer that had lost the run still uploads
takes no other's place, and no record speaks of it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import pyarrow as pa

from treeadv import wire
from treeadv.errors import BadInput
from treeadv.replay.records import Place
from treeadv.storage.folder import Deletion, Folder, Part, RemotePart, TooShort, one_line

SUFFIX = ".arrow"
_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"  # end of an Arrow IPC stream


class Damaged(BadInput):
    """A payload is not what was written, or not there."""


class Segments:
    """Appends forests, and reads them back as views of the memory-mapped file."""

    def __init__(self, folder: Folder, segment_bytes: int, durable: bool, session: str = "") -> None:
        """A segment is sealed at `segment_bytes`; without `durable` nobody will flush it. One of an earlier process is never
        appended to: its tail may be torn."""
        self._folder = folder
        self._limit = segment_bytes
        self._durable = durable
        self._part: Part | None = None
        self._sealed: list[Part] = []  # not flushed yet
        self._held: list[RemotePart] = []  # those that may not be written yet
        self._dirty = False
        self._closed = False
        self._readable: set[str] = set()  # segments whose schema has been checked
        self._tail = SUFFIX if folder.local else f"-{session}{SUFFIX}"
        self._names = folder.sizes(SUFFIX)
        self._number = max((int(n.removesuffix(SUFFIX).partition("-")[0]) for n in self._names), default=0)

    def settle(self, needed: set[str]) -> None:
        """Make durable what the process before may have left unflushed of `needed` segments."""
        for name in needed & self._names.keys():
            self._folder.sync(name)

    def append(self, batch: pa.RecordBatch) -> Place:
        """Write one forest. `BadInput` if the disk is full; what is stored stays."""
        if self._closed:
            raise RuntimeError(f"{self._folder.uri}: the segments are closed, the run may be another's by now")
        if self._part is None:
            self._number += 1
            self._part = self._folder.create(f"{self._number:010d}{self._tail}")
            if isinstance(self._part, RemotePart):
                self._held = [p for p in [*self._held, self._part] if not p.written]
        if self._part.size == 0:
            self._part.write(wire.SCHEMA.serialize())
        message = batch.serialize()
        place = Place(self._part.name, self._part.size, message.size, zlib.crc32(message))
        self._part.write(message)
        self._names[self._part.name] = self._part.size
        self._dirty = True
        if self._part.size >= self._limit:
            self._seal()
        return place

    def read(self, place: Place) -> pa.RecordBatch:
        """The forest at `place`, its bytes checked. Raises `Damaged` naming segment and offset, `BadInput` where the store cannot be
        read or the schema is newer."""
        where = f"{self._folder.uri}/{place.segment} byte {place.offset}"
        try:
            self._check_schema(place.segment)
            message = self._bytes(place.segment, place.offset, place.length)
        except (FileNotFoundError, TooShort) as e:
            raise Damaged(f"{where}: the payload is not there ({one_line(e)}); restore the segment from a copy") from e
        except OSError as e:
            raise BadInput(f"{where}: the payload cannot be read ({one_line(e)}); see to the store, then resume the run") from e
        if zlib.crc32(message) != place.crc:
            raise Damaged(f"{where}: the payload of {place.length} bytes is damaged (checksum); restore the segment from a copy")
        return pa.ipc.read_record_batch(message, wire.SCHEMA)

    def pending(self) -> list[Part]:
        """Parts with forests that are not durable yet. The caller flushes them, before the journal."""
        if self._dirty and self._folder.local is None:
            self._seal()
        out, self._sealed = self._sealed, []
        if self._dirty and self._part is not None:
            out.append(self._part)
        self._dirty = False
        return out

    def unneeded(self, needed: set[str]) -> list[str]:
        """Segments that are neither needed nor being written."""
        writing = self._part.name if self._part else None
        return [n for n in self._names if n not in needed and n != writing]

    def deletion(self, names: Sequence[str], look: Callable[[], None]) -> Deletion:
        """What deletes segments."""
        for name in names:
            del self._names[name]
        return Deletion(self._folder, tuple(names), look)

    @property
    def size(self) -> int:
        """Bytes of all segments."""
        return sum(self._names.values())

    def close(self) -> None:
        self._closed = True
        for part in [*self._sealed, *([self._part] if self._part else [])]:
            part.close()
        self._part, self._sealed = None, []

    def _seal(self) -> None:
        if self._part is not None:
            self._part.write(_END)
            self._part.seal()
            if self._durable:
                self._sealed.append(self._part)
            else:
                self._part.close()
            self._part = None

    def _bytes(self, segment: str, offset: int, length: int) -> pa.Buffer:
        for part in self._held:
            if part.name == segment and (data := part.held()):
                return pa.py_buffer(data[offset : offset + length])
        return self._folder.read(segment, offset, length)

    def _check_schema(self, segment: str) -> None:
        """An encapsulated Arrow message starts with a marker and the length of its metadata, 4 bytes each."""
        if segment not in self._readable:
            length = int.from_bytes(memoryview(self._bytes(segment, 4, 4)), "little")
            header = self._bytes(segment, 0, 8 + length)
            try:
                schema = pa.ipc.read_schema(header)
            except (OSError, pa.ArrowInvalid) as e:  # either
                where = f"{self._folder.uri}/{segment}"
                raise Damaged(f"{where}: its header is damaged ({one_line(e)}); restore the segment from a copy") from e
            wire.check_schema(schema, f"{self._folder.uri}/{segment}")
            self._readable.add(segment)


def reading(folder: Folder) -> Segments:
    """Segments to read from only."""
    return Segments(folder, 1, durable=False)
