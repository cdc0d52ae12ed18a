"""Finds the tokenizer with which the tokens of a run are shown."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from treeadv.config import Config
from treeadv.report.picture import Numbers, Vocabulary
from treeadv.storage.run_folder import RunFolder


def run_vocabulary(folder: RunFolder, config: Config) -> Vocabulary | Numbers:
    """Return the tokenizer of the newest checkpoint, or else the tokenizer of the model. Without a tokenizer, return
    `Numbers`."""
    for place in _model_folders(folder, config):
        if (place / "tokenizer.json").is_file():
            return Vocabulary(place)
    return Numbers()


def _model_folders(folder: RunFolder, config: Config) -> Iterator[Path]:
    yield from (folder.checkpoint(step) for step in reversed(folder.checkpoints()))
    yield Path(config.model.path)
    yield Path(config.model.cache) / config.model.path
