"""Durable writes to a local disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an error of the disk into a `BadInput` of one line. Examples are a full disk, a quota and a missing
    permission."""
    try:
        yield
    except OSError as e:
        raise BadInput(f"{path}: cannot be written ({e.strerror or e}); {_REMEDY}") from e


def rename_durably(scratch: Path, target: Path) -> None:
    """Rename a file or folder to `target` in the same folder. After a crash `target` is complete or does not exist.

    An old folder is deleted first. An old file or link is replaced; what a link names stays as it is."""
    for path in [*scratch.rglob("*"), scratch]:
        fsync(path)
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    elif scratch.is_dir():  # a folder replaces no file and no link
        target.unlink(missing_ok=True)
    os.replace(scratch, target)
    fsync(target.parent)


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `target`, and rename it to `target` if the body raises no error.

    Raises `BadInput` if a write fails; the old `target` is then unchanged."""
    scratch = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with writing(target):
            yield scratch
            rename_durably(scratch, target)
    finally:
        if scratch.is_dir():
            shutil.rmtree(scratch)
        scratch.unlink(missing_ok=True)


def replace_file(target: Path, data: str | bytes) -> None:
    """Replace the content of a file. After a crash the file has the old content or the new content.

    Raises `BadInput` if a write fails."""
    with replacing(target) as scratch:
        scratch.write_bytes(data.encode() if isinstance(data, str) else data)
