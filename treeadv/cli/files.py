"""Checks and writes the output files of a command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from treeadv.disk import replacing
from treeadv.errors import BadInput


def check_target(path: Path) -> None:
    """Raise `BadInput` if no file can be written at this path."""
    if not path.parent.is_dir():
        raise BadInput(f"{path}: its folder does not exist; make {path.parent} first")
    if path.is_dir():
        raise BadInput(f"{path} is a folder; give a file")


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yield a temporary file in the folder of `path`. It replaces `path` at the end, and is removed after an error."""
    check_target(path)
    with replacing(path) as scratch:
        yield scratch
