"""Files that a command writes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from treeadv.errors import BadInput
from treeadv.storage.disk import replacing


def check_target(path: Path) -> None:
    """Raise `BadInput` where no file can have this name."""
    if not path.parent.is_dir():
        raise BadInput(f"{path}: its folder does not exist; make {path.parent} first")
    if path.is_dir():
        raise BadInput(f"{path} is a folder; give a file")


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Give a scratch file beside `path`. It replaces `path` when the block ends, and is removed on failure."""
    check_target(path)
    with replacing(path) as scratch:
        yield scratch
