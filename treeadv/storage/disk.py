"""Durable writes to the disk of this machine."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from treeadv.errors import BadInput


def fsync(path: Path) -> None:
    """Make the bytes of a file or the entries of a folder durable, whichever process wrote them."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn any refusal of the disk (full, over a quota or a size limit, not permitted) into `BadInput`: one line."""
    try:
        yield
    except OSError as e:
        remedy = "nothing stored is lost: free space or mend the disk, then resume the run"
        raise BadInput(f"{path}: cannot be written ({e.strerror or e}); {remedy}") from e


def publish(scratch: Path, target: Path) -> None:
    """Rename a file or folder to `target` in the same folder, durably: after a crash `target` is whole or not there.

    A folder that has the name `target` is deleted first, a file is replaced.
    """
    for path in [*scratch.rglob("*"), scratch]:
        fsync(path)
    if target.is_dir():
        shutil.rmtree(target)
    os.replace(scratch, target)
    fsync(target.parent)


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yield a path beside `target` to write a file or folder to, and publish it as `target` if nothing fails.

    Raises `BadInput` where the disk refuses; the old `target` then stays.
    """
    scratch = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with writing(target):
            yield scratch
            publish(scratch, target)
    finally:
        if scratch.is_dir():
            shutil.rmtree(scratch)
        scratch.unlink(missing_ok=True)


def replace_file(target: Path, data: str | bytes) -> None:
    """Write a file so that after a crash it has the old or the new content, whole. Raises as `replacing` does."""
    with replacing(target) as scratch:
        scratch.write_bytes(data.encode() if isinstance(data, str) else data)
