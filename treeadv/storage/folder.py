"""A folder on any pyarrow file system, and append-only parts in it.

On a local disk a part grows in place and `sync` is fsync. An object store has no append: there a part is kept in memory and written
as one object, whole or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

import pyarrow as pa
import pyarrow.fs as pafs

from treeadv.errors import BadInput
from treeadv.storage.disk import fsync

Bytes: TypeAlias = bytes | pa.Buffer


class TooShort(OSError):
    """A file ends before what was asked of it."""


class Syncable(Protocol):
    def sync(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Deletion:
    """Deletes files, those already gone included, asking `look` before each whether that may be."""

    folder: Folder
    names: tuple[str, ...]
    look: Callable[[], None]

    def sync(self) -> None:
        for name in self.names:
            self.look()
            with contextlib.suppress(FileNotFoundError):
                self.folder.delete(name)


@dataclass(frozen=True, slots=True)
class WholeFile:
    """Writes a file at once."""

    folder: Folder
    name: str
    data: bytes

    def sync(self) -> None:
        self.folder.write_whole(self.name, self.data)


class Part(Protocol):
    """An append-only file of `size` bytes. A sealed part takes no more and is closed by its next `sync`."""

    name: str
    size: int

    def write(self, data: Bytes) -> None: ...

    def seal(self) -> None: ...

    def sync(self) -> None:
        """Make what was written durable. May run in another thread than the rest."""
        ...

    def close(self) -> None:
        """Give the file up without making it durable."""
        ...


class LocalPart:
    """A growing file. A write that fails leaves the file as it was, so what was written before stays readable."""

    def __init__(self, path: Path, name: str) -> None:
        self.name = name
        self.size = 0
        self._sealed = False
        self._path = path
        self._lock = threading.Lock()  # a sync may run in another thread while the owner closes
        self._fd: int | None = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        fsync(path.parent)

    def write(self, data: Bytes) -> None:
        assert self._fd is not None, f"{self._path} is closed"
        rest = memoryview(data)
        try:
            while rest.nbytes:
                rest = rest[os.write(self._fd, rest) :]
        except OSError as e:
            os.ftruncate(self._fd, self.size)
            if e.errno in (errno.ENOSPC, errno.EDQUOT):
                raise BadInput(f"{self._path}: {e.strerror}; nothing stored is lost: free space, then resume the run") from e
            raise
        self.size += len(data)

    def seal(self) -> None:
        self._sealed = True

    def sync(self) -> None:
        with self._lock:
            if self._fd is not None:
                os.fsync(self._fd)
        if self._sealed:
            self.close()

    def close(self) -> None:
        with self._lock:
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None


class RemotePart:
    """One object, written whole: by `sync` once it is sealed, or again and again by what `so_far` gives."""

    def __init__(self, fs: pafs.FileSystem, path: str, name: str) -> None:
        self.name = name
        self.size = 0
        self.written = False  # it can be read from the store
        self._sealed = False
        self._fs = fs
        self._path = path
        self._chunks: list[Bytes] = []

    def write(self, data: Bytes) -> None:
        assert not self._sealed, f"{self._path} is sealed"
        self._chunks.append(data)
        self.size += len(data)

    def seal(self) -> None:
        self._sealed = True

    def sync(self) -> None:
        assert self._sealed, f"{self._path} must be sealed: an object is written once"
        _put(self._fs, self._path, self._chunks)
        self.written = True
        self._chunks = []  # in one go: another thread may be reading them

    def so_far(self) -> Syncable:
        """To be flushed: the object as it is now, whatever is written to it meanwhile."""
        self._chunks = [self.held()]
        return _Upload(self._fs, self._path, self._chunks[0])

    def held(self) -> bytes:
        """What is not `written`."""
        return b"".join(self._chunks)

    def close(self) -> None:
        self._chunks = []


@dataclass(frozen=True, slots=True)
class _Upload:
    fs: pafs.FileSystem
    path: str
    data: Bytes

    def sync(self) -> None:
        _put(self.fs, self.path, [self.data])


class Folder:
    """A folder named by a local path or a URI that pyarrow knows (s3://, gs://, ...). Made if it does not exist."""

    def __init__(self, uri: str) -> None:
        try:
            fs, base = pafs.FileSystem.from_uri(uri) if "://" in uri else (pafs.LocalFileSystem(), str(Path(uri).absolute()))
            self._fs, self._base = fs, base.rstrip("/")
        except (pa.ArrowInvalid, OSError) as e:
            raise BadInput(f"{uri}: not a path or URI of a file system ({one_line(e)})") from e
        self.uri = uri
        self.local = Path(self._base) if isinstance(fs, pafs.LocalFileSystem) else None

    def child(self, name: str) -> Folder:
        """A folder inside this one."""
        out = Folder.__new__(Folder)
        out._fs, out._base, out.uri = self._fs, f"{self._base}/{name}", join(self.uri, name)
        out.local = self.local / name if self.local else None
        return out

    def make(self) -> None:
        """Make it with the folders above it; durable on return."""
        above = [p for p in (self.local, *self.local.parents) if not p.exists()] if self.local else []
        self._fs.create_dir(self._base, recursive=True)
        for path in above:
            fsync(path.parent)

    def create(self, name: str) -> Part:
        """A new part; FileExistsError if there is one of that name on a local disk."""
        if self.local:
            return LocalPart(self.local / name, name)
        return RemotePart(self._fs, f"{self._base}/{name}", name)

    def sizes(self, suffix: str) -> dict[str, int]:
        """Size in bytes of each file that ends so, by name in order; empty if the folder does not exist."""
        found = self._fs.get_file_info(pafs.FileSelector(self._base, allow_not_found=True))
        files = sorted((i for i in found if i.is_file and i.base_name.endswith(suffix)), key=lambda i: i.base_name)
        return {i.base_name: i.size for i in files}

    def read(self, name: str, offset: int = 0, length: int | None = None) -> pa.Buffer:
        """Bytes of a file: a memory-mapped view on a local disk, fetched otherwise. FileNotFoundError or `TooShort` where
        they are not there, another OSError where nobody can tell."""
        if self.local:
            with pa.memory_map(str(self.local / name), "r") as file:
                return _exactly(file, name, offset, length)
        with self._fs.open_input_file(f"{self._base}/{name}") as file:
            return _exactly(file, name, offset, length)

    def write_whole(self, name: str, data: bytes) -> None:
        """Write a file so that after a crash it is there whole or not at all; durable on return."""
        if self.local is None:
            with self._fs.open_output_stream(f"{self._base}/{name}") as out:
                out.write(data)
            return
        new = self.local / "unfinished"
        new.unlink(missing_ok=True)  # of a process that died here
        part = LocalPart(new, name)
        part.write(data)
        part.seal()
        part.sync()
        os.replace(new, self.local / name)
        fsync(self.local)

    def truncate(self, name: str, size: int) -> None:
        """Cut a file to its first `size` bytes; durable on return, else what is written behind it later could outlive the cut."""
        if self.local:
            os.truncate(self.local / name, size)
            self.sync(name)
            return
        kept = self.read(name, 0, size)
        with self._fs.open_output_stream(f"{self._base}/{name}") as out:
            out.write(kept)

    def sync(self, name: str) -> None:
        """Make durable what an earlier process may have written to a file and not flushed."""
        if self.local:
            fsync(self.local / name)

    def delete(self, name: str) -> None:
        self._fs.delete_file(f"{self._base}/{name}")

    def tree(self) -> dict[str, int]:
        """Size in bytes of every file at any depth, by its path in here."""
        found = self._fs.get_file_info(pafs.FileSelector(self._base, recursive=True, allow_not_found=True))
        return {i.path.removeprefix(f"{self._base}/"): i.size for i in found if i.is_file}

    def copy_in(self, source: Path) -> None:
        """Copy all that a local folder holds into this one."""
        pafs.copy_files(str(source), self._base, source_filesystem=pafs.LocalFileSystem(), destination_filesystem=self._fs)

    def copy_out(self, target: Path) -> None:
        """Copy all that this folder holds into a local one."""
        pafs.copy_files(self._base, str(target), source_filesystem=self._fs, destination_filesystem=pafs.LocalFileSystem())

    def delete_tree(self) -> None:
        """Delete the folder with all in it; nothing happens if there is none."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.delete_dir(self._base)

    def free_bytes(self) -> int | None:
        """Bytes free on the disk; None on an object store, which has no such bound."""
        return shutil.disk_usage(self.local).free if self.local else None


def join(uri: str, name: str) -> str:
    """The path or URI of `name` in a folder; a URI's query, which says how to reach the store, stays at its end."""
    base, mark, query = uri.partition("?") if "://" in uri else (uri, "", "")
    return f"{base.rstrip('/')}/{name}{mark}{query}"


def one_line(fault: BaseException) -> str:
    return " ".join(str(fault).split())


def flush(parts: Sequence[Syncable]) -> None:
    """Make parts durable, in order: what the last one says, the ones before it hold."""
    for part in parts:
        part.sync()


def _put(fs: pafs.FileSystem, path: str, chunks: Sequence[Bytes]) -> None:
    try:
        with fs.open_output_stream(path) as out:
            for chunk in chunks:
                out.write(chunk)
    except OSError as e:
        raise BadInput(f"{path}: cannot be written ({one_line(e)}); see to the store, then resume the run") from e


def _exactly(file: pa.NativeFile, name: str, offset: int, length: int | None) -> pa.Buffer:
    size = file.size()
    want = size - offset if length is None else length
    if want == 0:
        return pa.py_buffer(b"")
    if offset + want > size:
        raise TooShort(f"{name}: {want} bytes at {offset} wanted of {size}")
    file.seek(offset)
    return file.read_buffer(want)
