"""A folder in which a run keeps its files: the protocol, and the choice of the implementation by the folder's URI."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias, cast

import pyarrow as pa

from treeadv.errors import BadInput
from treeadv.extensions import load_extension
from treeadv.storage.lock import Lock, Owner

Bytes: TypeAlias = bytes | pa.Buffer
Action: TypeAlias = Callable[[], object]  # one step on the way to durability: an fsync, an upload, a check, a deletion

# The implementation by the scheme of the URI; "*" stands for every other scheme that pyarrow knows.
FOLDERS = {
    "": "treeadv.storage.local:LocalFolder",
    "file": "treeadv.storage.local:LocalFolder",
    "*": "treeadv.storage.objects:ObjectFolder",
}


class TooShort(OSError):
    """A file ends before the bytes that were asked for."""


class AppendFile(Protocol):
    """An append-only file of `size` bytes."""

    name: str
    size: int

    @property
    def ends_with_flush(self) -> bool:
        """Whether the file must be sealed at the next flush. Later bytes then go to a new file."""
        ...

    def write(self, data: Bytes) -> None:
        """Append bytes. Raises `BadInput` where the disk refuses; the file then has the bytes that it had before."""
        ...

    def seal(self) -> None:
        """Take no more bytes. The next flush closes the file."""
        ...

    def pending(self) -> Action:
        """Return the action that makes the bytes written so far durable. It may run in another thread."""
        ...

    def close(self) -> None:
        """Close the file without making it durable."""
        ...


class Folder(Protocol):
    """A folder of files, on a disk or in an object store.

    `flush_seconds` is the interval between flushes that suits the medium. `keeps_unflushed` tells whether bytes that
    were written and not flushed outlive the process.
    """

    uri: str
    flush_seconds: float
    keeps_unflushed: bool

    def child(self, name: str) -> Folder:
        """Return a folder inside this one. It need not exist."""
        ...

    def make(self) -> None:
        """Make the folder and those above it where the medium needs that; durable on return."""
        ...

    def writer_tag(self, session: str) -> str:
        """Return what the names of the files of one writer end with. Two writers of an object store share no name."""
        ...

    def create(self, name: str, rewrite_below: int = 0) -> AppendFile:
        """Make a new append-only file. An object store writes it again at each flush while it is smaller than
        `rewrite_below` bytes."""
        ...

    def sizes(self, suffix: str) -> dict[str, int]:
        """Return the size in bytes of each file that ends with `suffix`, by name, sorted; {} if the folder is
        missing."""
        ...

    def tree(self) -> dict[str, int]:
        """Return the size in bytes of every file at any depth, by its path inside the folder."""
        ...

    def read(self, name: str, offset: int = 0, length: int | None = None) -> pa.Buffer:
        """Return bytes of a file, those that this object wrote and has not flushed included.

        Raises FileNotFoundError or `TooShort` if the bytes do not exist, another OSError if the medium does not answer.
        """
        ...

    def open_all(self, names: Sequence[str]) -> list[pa.NativeFile]:
        """Open files to read, in the order of `names`. One that is deleted later stays readable."""
        ...

    def write_whole(self, name: str, data: bytes) -> None:
        """Write a file so that after a crash it is whole or not there; durable on return."""
        ...

    def truncate(self, name: str, size: int) -> None:
        """Cut a file to its first `size` bytes; durable on return, so that no later record outlives the cut."""
        ...

    def sync(self, name: str) -> None:
        """Make durable what an earlier process may have written to a file and not flushed."""
        ...

    def delete(self, name: str) -> None:
        """Delete a file. Raises FileNotFoundError if there is none."""
        ...

    def delete_tree(self) -> None:
        """Delete the folder with everything in it. Does nothing if it does not exist."""
        ...

    def copy_in(self, source: Path) -> None:
        """Copy all files of a local folder into this one."""
        ...

    def copy_out(self, target: Path) -> None:
        """Copy all files of this folder into a local one."""
        ...

    def free_bytes(self) -> int | None:
        """Return the bytes free on the disk; None where there is no such bound."""
        ...

    def lock(self, session: str, step: int) -> Lock:
        """Take the run whose files lie here. Raises `BadInput` if another process has it."""
        ...

    def owner(self) -> Owner:
        """Return the session that opened the run last. A local lock does not tell."""
        ...

    def check_owner(self, session: str) -> None:
        """Raise `BadInput` if another session has opened the run since. A local lock excludes that."""
        ...


def open_folder(uri: str) -> Folder:
    """Return the folder at a local path or a URI. Its scheme is one of `FOLDERS`, or `module:Name` of a class.

    Raises `BadInput` for a URI that no implementation takes.
    """
    scheme = uri.partition("://")[0] if "://" in uri else ""
    name = scheme if ":" in scheme else FOLDERS.get(scheme, FOLDERS["*"])
    implementation = cast(Callable[[str], Folder], load_extension("run.storage", name, {}))
    return implementation(uri)


@dataclass(frozen=True, slots=True)
class Deletion:
    """Deletes files, and skips those that are gone. `check` runs before each deletion and may refuse it."""

    folder: Folder
    names: tuple[str, ...]
    check: Action

    def __call__(self) -> None:
        for name in self.names:
            self.check()
            with contextlib.suppress(FileNotFoundError):
                self.folder.delete(name)


@dataclass(frozen=True, slots=True)
class WholeFile:
    """Writes a whole file."""

    folder: Folder
    name: str
    data: bytes

    def __call__(self) -> None:
        self.folder.write_whole(self.name, self.data)


def flush(actions: Sequence[Action]) -> None:
    """Run actions in order: a file that refers to another is made durable after it."""
    for action in actions:
        action()


def join(uri: str, name: str) -> str:
    """Return the path or URI of `name` in a folder. The query of a URI, which says how to reach the store, stays
    last."""
    base, mark, query = uri.partition("?") if "://" in uri else (uri, "", "")
    return f"{base.rstrip('/')}/{name}{mark}{query}"


def split(uri: str) -> tuple[str, str]:
    """Return the parent folder and the last name of a URI: the inverse of `join`."""
    base, mark, query = uri.partition("?")
    parent, _, name = base.rstrip("/").rpartition("/")
    if not parent or not name:
        raise BadInput(f"{uri}: names no folder inside a store; write s3://bucket/runs/NAME")
    return f"{parent}{mark}{query}", name


def read_exactly(file: pa.NativeFile, name: str, offset: int, length: int | None) -> pa.Buffer:
    """Return `length` bytes of an open file from `offset`, or the rest of the file. Raises `TooShort`."""
    size = file.size()
    count = size - offset if length is None else length
    if count == 0:
        return pa.py_buffer(b"")
    if offset + count > size:
        raise TooShort(f"{name}: has {size} bytes, {count} at {offset} were asked for")
    file.seek(offset)
    return file.read_buffer(count)
