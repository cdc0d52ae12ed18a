"""The protocol of a folder that stores files of a run, and the choice of its implementation by the folder's URI."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias, cast
from urllib.parse import urlsplit

import pyarrow as pa

from treeadv.errors import BadInput, one_line
from treeadv.extensions import load_extension
from treeadv.places import check_typed, is_uri
from treeadv.storage.lock import Lock, Owner

Bytes: TypeAlias = bytes | pa.Buffer
Action: TypeAlias = Callable[[], object]  # one step of a flush: an fsync, an upload, a check or a deletion

# The keys are schemes of a URI, and the values are implementations. "*" is every other scheme that pyarrow knows.
FOLDERS = {
    "": "treeadv.storage.local:LocalFolder",
    "file": "treeadv.storage.local:LocalFolder",
    "*": "treeadv.storage.objects:ObjectFolder",
}
# The schemes that pyarrow knows. A user's own scheme is `module:Name`.
_SCHEMES = ("abfs", "abfss", "file", "gcs", "gs", "hdfs", "s3", "viewfs")


class TooShort(OSError):
    """The requested bytes go beyond the end of the file."""


class AppendFile(Protocol):
    """An append-only file of `size` bytes."""

    name: str
    size: int

    @property
    def ends_with_flush(self) -> bool:
        """Return whether the file must be sealed at the next flush. Later bytes then go to a new file."""
        ...

    def write(self, data: Bytes) -> None:
        """Append bytes. Raises `BadInput` if the write fails; the file is then unchanged."""
        ...

    def seal(self) -> None:
        """Mark the file as complete. The next flush closes the file."""
        ...

    def pending(self) -> Action:
        """Return the action that makes the written bytes durable. The action may run in another thread."""
        ...

    def close(self) -> None:
        """Close the file without a flush."""
        ...


class Folder(Protocol):
    """A folder of files on a disk or in an object store.

    `flush_seconds` is the recommended interval between flushes. `keeps_unflushed` says whether bytes that were
    written and not flushed outlive the process."""

    uri: str
    flush_seconds: float
    keeps_unflushed: bool

    def child(self, name: str) -> Folder:
        """Return a folder inside this folder. The inner folder need not exist."""
        ...

    def make(self) -> None:
        """Create the folder and its parents durably. In an object store this does nothing, because it needs no
        folders."""
        ...

    def writer_tag(self, session: str) -> str:
        """Return the suffix of the file names of one writer. In an object store two writers have different suffixes."""
        ...

    def create(self, name: str, rewrite_below: int = 0) -> AppendFile:
        """Create an append-only file.

        In an object store each flush rewrites the object as long as the object has less than `rewrite_below` bytes."""
        ...

    def sizes(self, suffix: str) -> dict[str, int]:
        """Return the sorted mapping from name to size in bytes of each file whose name ends with `suffix`.

        The result is {} if the folder does not exist."""
        ...

    def tree(self) -> dict[str, int]:
        """Return the size in bytes of every file at any depth, by the path of the file inside the folder."""
        ...

    def read(self, name: str, offset: int = 0, length: int | None = None) -> pa.Buffer:
        """Return bytes of a file. They include bytes that this object has written and not flushed.

        Raises FileNotFoundError or `TooShort` if the bytes do not exist. Raises another OSError or `BadInput` if the
        read fails."""
        ...

    def open_all(self, names: Sequence[str]) -> list[pa.NativeFile]:
        """Open files for reading, in the order of `names`. An open file stays readable if it is deleted later."""
        ...

    def write_whole(self, name: str, data: bytes) -> None:
        """Write a file durably. After a crash the file is complete or does not exist.

        Raises `BadInput` if the write fails, as every method does that writes."""
        ...

    def truncate(self, name: str, size: int) -> None:
        """Cut a file to its first `size` bytes durably, so that the removed bytes cannot reappear."""
        ...

    def sync(self, name: str) -> None:
        """Make bytes durable that an earlier process may have written to a file and not flushed."""
        ...

    def delete(self, name: str) -> None:
        """Delete a file. Raises FileNotFoundError if the file does not exist."""
        ...

    def delete_tree(self) -> None:
        """Delete the folder with its contents. Does nothing if the folder does not exist."""
        ...

    def copy_in(self, source: Path) -> None:
        """Copy all files of a local folder into this folder."""
        ...

    def copy_out(self, target: Path) -> None:
        """Copy all files of this folder into a local folder."""
        ...

    def copy_file(self, source: str, target: str) -> None:
        """Copy one file. `source` and `target` are paths inside this folder."""
        ...

    def free_bytes(self) -> int | None:
        """Return the number of free bytes on the disk; None for a store without a limit."""
        ...

    def lock(self, session: str, step: int) -> Lock:
        """Lock the run whose files are in this folder. Raises `BadInput` if another process holds the lock."""
        ...

    def owner(self) -> Owner:
        """Return the session that opened the run last. A local lock does not record a session."""
        ...

    def check_owner(self, session: str) -> None:
        """Raise `BadInput` if another session has opened the run later. A local lock makes this impossible."""
        ...


def check_uri(uri: str) -> None:
    """Raise `BadInput` unless `uri` (run.storage) is a URI of a store, without credentials. Contacts no store."""
    check_typed(uri, "run.storage")
    if not is_uri(uri):
        raise BadInput(
            f"run.storage={uri}: write a URI, such as s3://bucket/runs; a folder of this machine is run.root={uri}"
        )
    try:
        uri.encode()
        parts = urlsplit(uri)
    except ValueError as e:  # half of a surrogate pair, or an open bracket in the place of a host
        raise BadInput(f"run.storage={uri!a}: is no URI ({one_line(e)}); write one such as s3://bucket/runs") from e
    if parts.password:
        raise BadInput(
            f"run.storage={parts._replace(netloc='...').geturl()}: write a URI without credentials, such as"
            " s3://bucket/runs; set credentials in the environment (AWS_ACCESS_KEY_ID, ...)"
        )
    scheme = uri.partition("://")[0]
    known = sorted({*_SCHEMES, *FOLDERS} - {"", "*"})
    if ":" not in scheme and scheme not in known:
        close = difflib.get_close_matches(scheme.lower(), known, n=1, cutoff=0.5)
        hint = f", did you mean {close[0]}?" if close else ""
        raise BadInput(f"run.storage={uri}: unknown scheme {scheme}{hint} (known are {', '.join(known)}, module:Name)")


def open_folder(uri: str) -> Folder:
    """Return the folder at a local path or a URI. The scheme of the URI is a key of `FOLDERS`, or `module:Name` of a
    class.

    Raises `BadInput` for a URI without an implementation."""
    scheme = uri.partition("://")[0] if "://" in uri else ""
    name = scheme if ":" in scheme else FOLDERS.get(scheme, FOLDERS["*"])
    implementation = cast(Callable[[str], Folder], load_extension("run.storage", name, {}))
    return implementation(uri)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deletion:
    """An action that deletes files and skips missing files. `check` runs before each deletion and may raise an
    error."""

    folder: Folder
    names: tuple[str, ...]
    check: Action

    def __call__(self) -> None:
        for name in self.names:
            self.check()
            with contextlib.suppress(FileNotFoundError):
                self.folder.delete(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeFile:
    """An action that writes a file in one piece."""

    folder: Folder
    name: str
    data: bytes

    def __call__(self) -> None:
        self.folder.write_whole(self.name, self.data)


def flush(actions: Sequence[Action]) -> None:
    """Run actions in order. The order makes a file durable after the files that it refers to."""
    for action in actions:
        action()


def join(uri: str, name: str) -> str:
    """Return the path or URI of `name` in a folder. The query of a URI holds the options of the store and stays at
    the end."""
    base, mark, query = uri.partition("?") if "://" in uri else (uri, "", "")
    return f"{base.rstrip('/')}/{name}{mark}{query}"


def split(uri: str) -> tuple[str, str]:
    """Return the parent folder and the last name of a URI. This function is the inverse of `join`."""
    base, mark, query = uri.partition("?")
    parent, _, name = base.rstrip("/").rpartition("/")
    if not parent or not name:
        raise BadInput(f"{uri} names no folder inside a store; write s3://bucket/runs/NAME")
    return f"{parent}{mark}{query}", name


def read_exactly(file: pa.NativeFile, name: str, offset: int, length: int | None) -> pa.Buffer:
    """Return `length` bytes of an open file from `offset`, or the rest of the file if `length` is None. Raises
    `TooShort`."""
    size = file.size()
    count = size - offset if length is None else length
    if count == 0:
        return pa.py_buffer(b"")
    if offset + count > size:
        raise TooShort(f"{name} has {size} bytes, but {count} bytes from {offset} were requested")
    file.seek(offset)
    return file.read_buffer(count)
