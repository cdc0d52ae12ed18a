"""Durable writes to a local disk."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal
from uuid import uuid4

from treeadv.errors import BadInput


def fsync(path: Path) -> None:
    """Make the bytes of a file or the entries of a folder durable. This includes bytes and entries that another
    process wrote."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


_REMEDY = "stored data is not lost: free space or repair the disk, then resume the run"


@contextmanager
def deleting(path: Path) -> Iterator[None]:
    """Turn an error of a deletion into a `BadInput` of one line. FileNotFoundError stays as it is."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as e:
        raise BadInput(f"{e.filename or path}: cannot be deleted ({e.strerror or e}); {_REMEDY}") from e


def make_folder(path: Path) -> None:
    """Create a folder and its parents, unless they exist. Raises `BadInput` if that fails."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise BadInput(f"{path}: the folder cannot be created ({e.strerror or e}); choose another") from e


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an error of the disk into a `BadInput` of one line. Examples are a full disk, a quota and a missing
    permission."""
    try:
        yield
    except OSError as e:
        raise BadInput(f"{path}: cannot be written ({e.strerror or e}); {_REMEDY}") from e


Existing = Literal["replace", "refuse", "keep"]


def rename(scratch: Path, target: Path, *, existing: Existing = "replace", durable: bool = True) -> None:
    """Rename a file or folder to `target` in the same folder.

    With `durable`, `target` is complete or does not exist after a crash. `existing` says what happens to an old
    `target`:

    - `replace` deletes an old folder first, and replaces an old file or link; what a link names stays as it is.
    - `refuse` raises OSError and changes nothing. `scratch` must be a folder. An empty old folder is replaced.
    - `keep` leaves both as they are. The rest is as with `refuse`."""
    if existing != "replace" and not scratch.is_dir():
        raise ValueError(f"{scratch}: only a folder can be renamed with existing={existing!r}")
    if durable:
        for path in [*scratch.rglob("*"), scratch]:
            fsync(path)
    if existing == "replace":
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        elif scratch.is_dir():  # a folder replaces no file and no link
            target.unlink(missing_ok=True)
    try:
        os.replace(scratch, target)  # a folder replaces no folder with files
    except OSError as e:
        if existing == "keep" and e.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            return
        raise
    if durable:
        fsync(target.parent)


@contextmanager
def scratch_of(target: Path) -> Iterator[Path]:
    """Yield a path in the folder of `target` that no other process uses. Delete what is at this path at the end."""
    scratch = target.with_name(f".{target.name}.{uuid4().hex[:12]}")
    try:
        yield scratch
    finally:
        if scratch.is_dir():
            shutil.rmtree(scratch)
        scratch.unlink(missing_ok=True)


@contextmanager
def replacing(target: Path, *, existing: Existing = "replace", durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path in the folder of `target`, and `rename` it to `target` if the body raises no error.

    Raises `BadInput` if a write fails; the old `target` is then unchanged."""
    with scratch_of(target) as scratch, writing(target):
        yield scratch
        rename(scratch, target, existing=existing, durable=durable)


def replace_file(target: Path, data: str | bytes) -> None:
    """Replace the content of a file. After a crash the file has the old content or the new content.

    Raises `BadInput` if a write fails."""
    with replacing(target) as scratch:
        scratch.write_bytes(data.encode() if isinstance(data, str) else data)
