"""Resolves the paths of a configuration.

A relative path starts at the working folder of the command. A run stores absolute paths. If a run was moved together
with its data, this module adjusts the paths."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from treeadv.config import Config
from treeadv.data.model_folder import anywhere
from treeadv.data.rows import content_hash
from treeadv.jsonl import JsonObject
from treeadv.places import check_local, check_typed, is_uri
from treeadv.task_config import ENDLESS, TaskConfig


def absolute(config: Config) -> Config:
    """Return the configuration with absolute paths, for a run that may be resumed from another folder.

    Raises `BadInput` for a URI in place of a path."""
    check_typed(config.run.root, "run.root")
    sglang, root = config.generator.sglang, config.run.root
    generator = config.generator.model_copy(
        update={"sglang": sglang.model_copy(update={"stubs": sglang.stubs and os.path.abspath(sglang.stubs)})}
    )
    return config.model_copy(
        update={
            "run": config.run.model_copy(update={"root": root if is_uri(root) else os.path.abspath(root)}),
            "model": anywhere(config.model),
            "task": _with_sources(config.task, _absolute),
            "generator": generator,
            "eval": config.eval.model_copy(update={"data": _absolute_eval(config.eval.data)}),
        }
    )


def with_content(config: Config) -> Config:
    """Return the configuration with the hash of each file and Hugging Face data set in `task.content`.

    Raises `BadInput` for a source that cannot be read."""
    named = {s.source: content_hash(s.source) for s in config.task.parts if s.source not in ENDLESS}
    return config.model_copy(update={"task": config.task.model_copy(update={"content": named})})


def moved(config: Config, root: Path) -> Config:
    """Return the configuration of a run whose folder is now in `root`.

    A missing data file or model is searched at the same place relative to the run as before the move. `task.content`
    says whether a file has the same content."""
    old = Path(config.run.root)

    def found(path: str) -> str:
        if not os.path.isabs(path) or os.path.exists(path):
            return path
        candidate = os.path.normpath(root / os.path.relpath(path, old))
        return candidate if os.path.exists(candidate) else path

    model = config.model.model_copy(update={key: found(getattr(config.model, key)) for key in ("path", "cache")})
    run = config.run.model_copy(update={"root": str(root)})
    held_out = config.eval.model_copy(update={"data": found(config.eval.data)})
    task = _with_sources(config.task, found)
    return config.model_copy(update={"run": run, "model": model, "task": task, "eval": held_out})


def same_task(a: TaskConfig, b: TaskConfig) -> bool:
    """Return whether two tasks have the same problems, prompts and verifiers, regardless of the paths of their
    files."""
    return _without_places(a) == _without_places(b)


def _without_places(task: TaskConfig) -> JsonObject:
    """Return the task with the known hash of each file instead of its path."""
    named = _with_sources(task, lambda source: task.content.get(source, source))
    return named.model_dump(exclude={"content"})


def _absolute(source: str) -> str:
    check_local(source, "task.source")
    return source if source in ENDLESS or source.startswith("hf:") else os.path.abspath(source)


def _absolute_eval(data: str) -> str:
    check_local(data, "eval.data")
    return data if data in ("", "held-out") else os.path.abspath(data)


def _with_sources(task: TaskConfig, change: Callable[[str], str]) -> TaskConfig:
    return task.model_copy(
        update={
            "source": change(task.source),
            "sources": [s.model_copy(update={"source": change(s.source)}) for s in task.sources],
            "content": {change(source): digest for source, digest in task.content.items()},
        }
    )
