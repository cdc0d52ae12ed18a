"""A folder on a local disk. Files grow in place, and a flush is an fsync."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.fs as pafs

from treeadv.disk import deleting, fsync, replace_file, writing
from treeadv.storage.folder import Action, Bytes, join, read_exactly
from treeadv.storage.lock import LocalLock, Owner


class LocalFile:
    """An append-only file. A failed write leaves the file unchanged, so earlier bytes stay readable."""

    ends_with_flush = False

    def __init__(self, path: Path, name: str) -> None:
        self.name = name
        self.size = 0
        self._path = path
        self._sealed = False
        self._lock = threading.Lock()  # a flush may run in another thread while the owner closes the file
        with writing(path):
            self._handle: int | None = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
            fsync(path.parent)

    def write(self, data: Bytes) -> None:
        if self._handle is None or self._sealed:
            raise RuntimeError(f"{self._path} is closed")
        rest = memoryview(data)
        with writing(self._path):
            try:
                while rest.nbytes:
                    rest = rest[os.write(self._handle, rest) :]
            except OSError:
                os.ftruncate(self._handle, self.size)
                raise
        self.size += len(data)

    def seal(self) -> None:
        self._sealed = True

    def pending(self) -> Action:
        return self.sync

    def sync(self) -> None:
        """Make the written bytes durable, and close a sealed file."""
        sealed = self._sealed  # read before the fsync, because a thread may seal the file during the fsync
        with self._lock:
            if self._handle is not None:
                with writing(self._path):
                    os.fsync(self._handle)
        if sealed:
            self.close()

    def close(self) -> None:
        with self._lock:
            if self._handle is not None:
                os.close(self._handle)
                self._handle = None


class LocalFolder:
    """A folder named by a path or a file:// URI."""

    flush_seconds = 1.0
    keeps_unflushed = True

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.path = Path(unquote(urlsplit(uri).path) if "://" in uri else uri).absolute()

    def child(self, name: str) -> LocalFolder:
        return LocalFolder(join(self.uri, name))

    def make(self) -> None:
        missing = [p for p in (self.path, *self.path.parents) if not p.exists()]
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            for path in missing:
                fsync(path.parent)

    def writer_tag(self, session: str) -> str:
        return ""  # the lock makes a second writer impossible

    def create(self, name: str, rewrite_below: int = 0) -> LocalFile:
        return LocalFile(self.path / name, name)

    def sizes(self, suffix: str) -> dict[str, int]:
        try:
            with os.scandir(self.path) as entries:
                files = [e for e in entries if e.name.endswith(suffix) and not e.name.startswith(".")]
                found = [(e.name, e.stat().st_size) for e in files if e.is_file()]
        except (FileNotFoundError, NotADirectoryError):
            return {}
        return dict(sorted(found))

    def tree(self) -> dict[str, int]:
        files = (p for p in self.path.rglob("*") if p.is_file())
        return {str(p.relative_to(self.path)): p.stat().st_size for p in files}

    def read(self, name: str, offset: int = 0, length: int | None = None) -> pa.Buffer:
        with pa.memory_map(str(self.path / name), "r") as file:
            return read_exactly(file, name, offset, length)

    def open_all(self, names: Sequence[str]) -> list[pa.NativeFile]:
        return [pa.OSFile(str(self.path / name), "r") for name in names]

    def write_whole(self, name: str, data: bytes) -> None:
        replace_file(self.path / name, data)

    def truncate(self, name: str, size: int) -> None:
        with writing(self.path / name):
            os.truncate(self.path / name, size)
            fsync(self.path / name)

    def sync(self, name: str) -> None:
        fsync(self.path / name)

    def delete(self, name: str) -> None:
        with deleting(self.path / name):
            (self.path / name).unlink()

    def delete_tree(self) -> None:
        with contextlib.suppress(FileNotFoundError), deleting(self.path):
            shutil.rmtree(self.path)

    def copy_in(self, source: Path) -> None:
        pafs.copy_files(str(source), str(self.path))

    def copy_out(self, target: Path) -> None:
        pafs.copy_files(str(self.path), str(target))

    def copy_file(self, source: str, target: str) -> None:
        (self.path / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.path / source, self.path / target)

    def free_bytes(self) -> int | None:
        return shutil.disk_usage(self.path).free

    def lock(self, session: str, step: int) -> LocalLock:
        return LocalLock(self.path)

    def owner(self) -> Owner:
        return Owner("", math.inf)

    def check_owner(self, session: str) -> None:
        pass
