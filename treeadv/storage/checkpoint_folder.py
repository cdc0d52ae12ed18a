"""Checkpoint folders on a disk: a folder has its final name only when it is whole and durable."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from treeadv.storage.disk import fsync


def scratch_folder(folder: Path, clear: bool = True) -> Path:
    """Where a checkpoint is written before `publish_folder` gives it its final name. `clear` deletes what a crash left there."""
    scratch = folder.with_name(f".{folder.name}.partial")
    if clear:
        shutil.rmtree(scratch, ignore_errors=True)
    return scratch


def publish_folder(scratch: Path, folder: Path) -> None:
    """Flush `scratch` to disk and rename it to `folder`, so that a crash leaves `folder` whole or absent."""
    for path in [*scratch.rglob("*"), scratch]:
        fsync(path)
    if folder.exists():  # the same step, written again after a resume
        shutil.rmtree(folder)
    os.replace(scratch, folder)
    fsync(folder.parent)


def prune_checkpoints(parent: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints step-N below `parent`, and what a crash left unfinished."""
    for path in sorted(parent.glob("step-*"), key=lambda p: int(p.name.removeprefix("step-")))[:-keep]:
        shutil.rmtree(path)
    for path in parent.glob(".step-*.partial"):
        shutil.rmtree(path)
