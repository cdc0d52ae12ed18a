"""A folder in an object store that pyarrow knows (s3://, gs://, ...).

An object store cannot append to an object. So an append-only file stays in memory and is uploaded as one object."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs

from treeadv.errors import BadInput, one_line
from treeadv.storage.folder import Action, Bytes, TooShort, join, read_exactly
from treeadv.storage.lock import ObjectLock, Owner, parse_lock, refuse_other_owner

_PARALLEL_READS = 16
# Seconds for which pyarrow repeats a failed request to Google's store. Its own limit is 15 minutes.
_GOOGLE_RETRY = "retry_limit_seconds=30"
_REMEDY = "check the address and the credentials in the environment, or repair the access to the store"


class ObjectFile:
    """An append-only file in memory. It is uploaded at each flush while it is small, and at the next flush after
    `seal`."""

    def __init__(self, folder: ObjectFolder, name: str, rewrite_below: int) -> None:
        self.name = name
        self.size = 0
        self._folder = folder
        self._rewrite_below = rewrite_below
        self._sealed = False
        self._uploaded = 0  # number of uploaded bytes
        self._chunks: list[Bytes] = []

    @property
    def ends_with_flush(self) -> bool:
        return self.size >= self._rewrite_below

    def write(self, data: Bytes) -> None:
        if self._sealed:
            raise RuntimeError(f"{self._folder.uri}/{self.name} is sealed")
        self._chunks.append(data)
        self.size += len(data)

    def seal(self) -> None:
        self._sealed = True

    def pending(self) -> Action:
        """Return an action that uploads the bytes that were written before this call."""
        data, sealed = self.unflushed(), self._sealed
        self._chunks = [data]
        return lambda: self._upload(data, sealed)

    def unflushed(self) -> bytes:
        """Return all bytes of the file; b"" after the upload of a sealed file."""
        return b"".join(self._chunks)

    def close(self) -> None:
        self._folder.forget(self.name)
        self._chunks = []

    def _upload(self, data: bytes, last: bool) -> None:
        if len(data) > self._uploaded:
            self._folder.write_whole(self.name, data)
            self._uploaded = len(data)
        if last:
            self.close()


class ObjectFolder:
    """A folder at a URI. A file exists once it is uploaded. The folder itself need not be created."""

    flush_seconds = 10.0  # the interval is long, because each flush uploads two objects
    keeps_unflushed = False

    def __init__(self, uri: str) -> None:
        try:
            self._fs, base = self.connect(uri)
        except pa.ArrowException as e:
            raise BadInput(f"{uri} is not a path or URI of a file system ({one_line(e)})") from e
        except OSError as e:  # Arrow asks the store for the region of a bucket
            raise BadInput(f"{uri} cannot be reached ({one_line(e)}); {_REMEDY}") from e
        self._base = base.rstrip("/")
        if not self._base:
            raise BadInput(f"{uri} names no bucket; write s3://bucket/runs/NAME")
        self.uri = uri
        self._open_files: dict[str, ObjectFile] = {}

    def connect(self, uri: str) -> tuple[pafs.FileSystem, str]:
        """Return the file system of a URI and the path in this file system. A subclass for another store overrides
        this method."""
        if uri.startswith(("gs://", "gcs://")) and "retry_limit_seconds=" not in uri:
            uri += f"{'&' if '?' in uri else '?'}{_GOOGLE_RETRY}"
        found: tuple[pafs.FileSystem, str] = pafs.FileSystem.from_uri(uri)
        return found

    def child(self, name: str) -> ObjectFolder:
        out = ObjectFolder.__new__(ObjectFolder)
        out._fs, out._base, out.uri = self._fs, f"{self._base}/{name}", join(self.uri, name)
        out._open_files = {}
        return out

    def make(self) -> None:
        pass

    def writer_tag(self, session: str) -> str:
        return f"-{session}"

    def create(self, name: str, rewrite_below: int = 0) -> ObjectFile:
        self._open_files[name] = file = ObjectFile(self, name, rewrite_below)
        return file

    def forget(self, name: str) -> None:
        """Drop the bytes of a file from memory. Later reads get the file from the store."""
        self._open_files.pop(name, None)

    def sizes(self, suffix: str) -> dict[str, int]:
        with self._errors("read"):
            found = self._fs.get_file_info(pafs.FileSelector(self._base, allow_not_found=True))
        files = [i for i in found if i.is_file and i.base_name.endswith(suffix)]
        return {i.base_name: i.size for i in sorted(files, key=lambda i: i.base_name)}

    def tree(self) -> dict[str, int]:
        with self._errors("read"):
            found = self._fs.get_file_info(pafs.FileSelector(self._base, recursive=True, allow_not_found=True))
        return {i.path.removeprefix(f"{self._base}/"): i.size for i in found if i.is_file}

    def read(self, name: str, offset: int = 0, length: int | None = None) -> pa.Buffer:
        unflushed = self._open_files[name].unflushed() if name in self._open_files else b""
        if unflushed:
            return read_exactly(pa.BufferReader(unflushed), name, offset, length)
        with self._errors("read", name), self._fs.open_input_file(f"{self._base}/{name}") as file:
            return read_exactly(file, name, offset, length)

    def open_all(self, names: Sequence[str]) -> list[pa.NativeFile]:
        with ThreadPoolExecutor(_PARALLEL_READS) as pool:
            return list(pool.map(lambda name: pa.BufferReader(self.read(name)), names))

    def write_whole(self, name: str, data: bytes) -> None:
        with self._errors("written", name), self._fs.open_output_stream(f"{self._base}/{name}") as out:
            out.write(data)

    def truncate(self, name: str, size: int) -> None:
        self.write_whole(name, self.read(name, 0, size).to_pybytes())

    def sync(self, name: str) -> None:
        pass  # every object in the store is durable

    def delete(self, name: str) -> None:
        with self._errors("deleted", name):
            self._fs.delete_file(f"{self._base}/{name}")

    def delete_tree(self) -> None:
        with contextlib.suppress(FileNotFoundError), self._errors("deleted"):
            self._fs.delete_dir(self._base)

    def copy_in(self, source: Path) -> None:
        local = pafs.LocalFileSystem()
        with self._errors("written"):
            pafs.copy_files(str(source), self._base, source_filesystem=local, destination_filesystem=self._fs)

    def copy_out(self, target: Path) -> None:
        local = pafs.LocalFileSystem()
        with self._errors("read"):
            pafs.copy_files(self._base, str(target), source_filesystem=self._fs, destination_filesystem=local)

    def copy_file(self, source: str, target: str) -> None:
        names = f"{self._base}/{source}", f"{self._base}/{target}"
        with self._errors("written", target):
            pafs.copy_files(*names, source_filesystem=self._fs, destination_filesystem=self._fs)

    def free_bytes(self) -> int | None:
        return None

    def lock(self, session: str, step: int) -> ObjectLock:
        return ObjectLock(self, session, step)

    def owner(self) -> Owner:
        return parse_lock(self.lock_bytes())

    def check_owner(self, session: str) -> None:
        refuse_other_owner(self, session)

    def lock_bytes(self) -> bytes:
        """Return the bytes of the lock object; b"" if no lock exists."""
        try:
            return self.read("lock").to_pybytes()
        except FileNotFoundError:
            return b""

    @contextmanager
    def _errors(self, what: str, name: str = "") -> Iterator[None]:
        """Turn an error of the store into a `BadInput` of one line. A caller that reads or deletes handles a missing
        file itself."""
        try:
            yield
        except OSError as e:
            if what != "written" and isinstance(e, FileNotFoundError | TooShort):
                raise
            where = join(self.uri, name) if name else self.uri
            raise BadInput(f"run.storage: {where} cannot be {what} ({one_line(e)}); {_REMEDY}") from e
