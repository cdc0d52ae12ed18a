"""Payload files: Arrow IPC stream files `0000000001.arrow`. A record batch holds forests that were admitted together.

File, offset, length and row address a forest. In an object store each flush creates one file. The name of the file
contains the session of its writer. So a process that has lost the run cannot overwrite a file of the new owner."""

from __future__ import annotations

import itertools
import re
import zlib
from collections.abc import Iterator, Sequence

import pyarrow as pa

from treeadv import wire
from treeadv.errors import BadInput, one_line
from treeadv.forest import Forest
from treeadv.forest.faults import all_sound, find_fault
from treeadv.messages import UNREADABLE, read_batch, read_schema
from treeadv.replay.records import Admitted, Place
from treeadv.storage.folder import Action, AppendFile, Deletion, Folder, TooShort

SUFFIX = ".arrow"
MESSAGE_BYTES = 1 << 18  # about the largest size of a shared message; who reads one of its forests reads all of it
_NAME = re.compile(r"\d{10,}(-[\w-]+)?\.arrow")
_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"  # end of an Arrow IPC stream


class DamagedPayload(BadInput):
    """The bytes of a payload are missing or differ from the bytes that were written."""


class PayloadReader:
    """A reader of forests in payload files. On a local disk the arrays are views of the memory-mapped file."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._readable: set[str] = set()  # files whose schema was checked

    def read(self, place: Place, *others: Place) -> pa.RecordBatch:
        """Return the forests at these places, which share a message, after a check of its checksum.

        The forests are a copy if the message holds others. Raises `DamagedPayload` with file and offset. Raises
        `BadInput` if the store cannot be read or the schema is newer."""
        where = f"{self._folder.uri}/{place.file} byte {place.offset}"
        if not _NAME.fullmatch(place.file) or place.offset < 0 or place.length < 0:
            raise DamagedPayload(f"{where}: the journal names no payload file; restore the journal from a backup")
        try:
            self._check_schema(place.file)
            message = self._folder.read(place.file, place.offset, place.length)
        except (FileNotFoundError, TooShort) as e:
            fault = f"the payload is missing ({one_line(e)}); restore the file from a backup"
            raise DamagedPayload(f"{where}: {fault}") from e
        except OSError as e:
            fault = f"the payload cannot be read ({one_line(e)}); repair the access to the store and resume the run"
            raise BadInput(f"{where}: {fault}") from e
        if zlib.crc32(message) != place.crc:
            fault = f"the payload of {place.length} bytes is damaged (checksum); restore the file from a backup"
            raise DamagedPayload(f"{where}: {fault}")
        batch = read_batch(message, wire.SCHEMA, where)
        rows = [place.row, *(other.row for other in others)]
        if missing := [row for row in rows if not 0 <= row < batch.num_rows]:
            fault = f"the journal names row {missing[0]} of {batch.num_rows}; restore the journal from a backup"
            raise DamagedPayload(f"{where}: {fault}")
        # A slice would keep the whole message, and some functions of Arrow ignore where a slice begins.
        return batch if rows == list(range(batch.num_rows)) else batch.take(rows)

    def forest(self, admitted: Admitted) -> Forest:
        """Return an admitted forest after a check of every invariant.

        Raises the errors of `read`. Raises `DamagedPayload` if the payload holds anything but this forest."""
        (forest,) = self.forests([admitted])
        return forest

    def forests(self, some: Sequence[Admitted]) -> list[Forest]:
        """Return admitted forests that share a message. Equals `forest` for each, but reads the message once."""
        found = wire.from_batch(self.read(*(a.place for a in some)))
        sound = all_sound(found)
        for a, forest in zip(some, found, strict=True):
            fault = None if sound else find_fault(forest)
            if forest.forest_id != a.forest_id:
                fault = f"it is forest {forest.forest_id}"
            if fault:
                raise DamagedPayload(
                    f"{self._folder.uri}/{a.payload_file} byte {a.offset}: the payload is not forest {a.forest_id}"
                    f" ({fault}); restore the file from a backup"
                )
        return found

    def _check_schema(self, file: str) -> None:
        """Check the schema message at the start of a file.

        The message starts with a marker of 4 bytes and the length of its metadata in 4 bytes."""
        if file in self._readable:
            return
        length = int.from_bytes(memoryview(self._folder.read(file, 4, 4)), "little")
        header = self._folder.read(file, 0, 8 + length)
        where = f"{self._folder.uri}/{file}"
        try:
            schema = read_schema(pa.ipc.read_message(header), where)
        except (*UNREADABLE, BadInput) as e:
            raise DamagedPayload(
                f"{where}: its header is damaged ({one_line(e)}); restore the file from a backup"
            ) from e
        wire.check_schema(schema, where)
        self._readable.add(file)


class Payloads(PayloadReader):
    """The writer and reader of payload files."""

    def __init__(self, folder: Folder, file_bytes: int, durable: bool, session: str) -> None:
        """Start a new file. A file that has reached `file_bytes` is sealed. If `durable` is false, nothing is flushed.

        Files of an earlier process stay as they are, because their last message may be torn."""
        super().__init__(folder)
        self._limit = file_bytes
        self._durable = durable
        self._file: AppendFile | None = None
        self._sealed: list[AppendFile] = []  # sealed files that are not flushed yet
        self._dirty = False
        self._closed = False
        self._tail = f"{folder.writer_tag(session)}{SUFFIX}"
        self._sizes = folder.sizes(SUFFIX)
        self._number = max((int(n.removesuffix(SUFFIX).partition("-")[0]) for n in self._sizes), default=0)

    def flush_existing(self, needed: set[str]) -> None:
        """Flush the files `needed`, because an earlier process may not have flushed them."""
        for name in needed & self._sizes.keys():
            self._folder.sync(name)

    def append(self, batch: pa.RecordBatch, rows: Sequence[int]) -> list[Place]:
        """Write the forests in `rows`, which ascend, and return their places. Adjacent rows share a message.

        Raises `BadInput` if a write fails; the stored forests are then unchanged."""
        most = max(1, MESSAGE_BYTES * batch.num_rows // max(1, batch.nbytes))
        return [place for first, count in _runs(rows, most) for place in self._append(batch.slice(first, count))]

    def _append(self, batch: pa.RecordBatch) -> list[Place]:
        if self._closed:
            raise RuntimeError(f"{self._folder.uri}: the payload files are closed; another process may own the run now")
        if self._file is None:
            self._number += 1
            self._file = self._folder.create(f"{self._number:010d}{self._tail}")
        if self._file.size == 0:
            self._file.write(wire.SCHEMA.serialize())
        message = batch.serialize()
        name, offset, length, crc = self._file.name, self._file.size, message.size, zlib.crc32(message)
        self._file.write(message)
        self._sizes[self._file.name] = self._file.size
        self._dirty = True
        if self._file.size >= self._limit:
            self._seal()
        return [Place(file=name, offset=offset, length=length, crc=crc, row=row) for row in range(batch.num_rows)]

    def pending(self) -> list[Action]:
        """Return the actions that make all forests durable. The caller runs them before it flushes the journal."""
        if self._dirty and self._file is not None and self._file.ends_with_flush:
            self._seal()
        files, self._sealed = self._sealed, []
        if self._dirty and self._file is not None:
            files.append(self._file)
        self._dirty = False
        return [file.pending() for file in files]

    def unneeded(self, needed: set[str]) -> list[str]:
        """Return the files that are not in `needed` and not open for writing."""
        open_file = self._file.name if self._file else None
        return [n for n in self._sizes if n not in needed and n != open_file]

    def deletion(self, names: Sequence[str], check: Action) -> Deletion:
        """Return the action that deletes files. `check` runs before each deletion."""
        for name in names:
            del self._sizes[name]
        return Deletion(folder=self._folder, names=tuple(names), check=check)

    @property
    def size(self) -> int:
        """Return the size of all payload files in bytes."""
        return sum(self._sizes.values())

    def close(self) -> None:
        self._closed = True
        for file in [*self._sealed, *([self._file] if self._file else [])]:
            file.close()
        self._file, self._sealed = None, []

    def _seal(self) -> None:
        if self._file is None:
            return
        self._file.write(_END)
        self._sizes[self._file.name] = self._file.size
        self._file.seal()
        if self._durable:
            self._sealed.append(self._file)
        else:
            self._file.close()
        self._file = None


def _runs(rows: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """Yield (first, count) of the runs of adjacent rows. `rows` ascend. A run has at most `most` rows."""
    for _, group in itertools.groupby(enumerate(rows), key=lambda item: item[1] - item[0]):
        run = [row for _, row in group]
        for i in range(0, len(run), most):
            yield run[i], len(run[i : i + most])
