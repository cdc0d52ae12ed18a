"""The store of a run. It is the folder of the run or an object store, and it holds the queue, the checkpoints and the
records.

This module contains the protocol, the implementation for a folder, and the choice of the implementation."""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Protocol

from treeadv.config import Config
from treeadv.disk import deleting, fsync, rename, replacing, writing
from treeadv.errors import one_line
from treeadv.jsonl import JsonMapping
from treeadv.storage import manifest
from treeadv.visible import visible_logger

RECORDS = ("metrics.jsonl", "evaluations.jsonl")  # files of JSON lines in a run folder, in the order of `step`
BEST, EVALUATION = "best", "evaluation.json"  # the folder of the best weights, and the file of their evaluation
MANIFEST = "files.json"  # the name of the manifest in the folder of a checkpoint
log = visible_logger("treeadv.storage")

# The implementation for a run with run.storage. Only such a run imports this module, because it needs pyarrow.
OBJECT_STORE = "treeadv.storage.object_run:ObjectRunStore"


class RunStore(Protocol):
    """The store of one run.

    `uri` is the path or URI of the run; the queue, `treeadv audit` and --resume use it. `keeps_unflushed` says
    whether bytes that the queue has written and not flushed outlive the queue's process."""

    uri: str
    keeps_unflushed: bool

    def check(self) -> None:
        """Raise `BadInput` unless files can be created and deleted in the store."""
        ...

    def holds_run(self) -> bool:
        """Return whether a run of this name exists."""
        ...

    def next_session(self) -> str:
        """Return the session of the next start of the run."""
        ...

    def push(self) -> None:
        """Store the records of the run folder durably."""
        ...

    def pull(self, name: str) -> str | None:
        """Return the store's copy of a file of records; None if the run folder is the store."""
        ...

    def keep(self, path: Path) -> None:
        """Store one more file of the run folder. The file then survives the loss of the machine that wrote it."""
        ...

    def checkpoints(self) -> list[int]:
        """Return the steps of the sealed checkpoints, oldest first. The files of these checkpoints may be damaged."""
        ...

    def newest_valid(self) -> int:
        """Return the step of the newest checkpoint with undamaged files; 0 if no such checkpoint exists.

        A warning names each damaged checkpoint. The next `seal` deletes the damaged checkpoints.
        """
        ...

    def write_checkpoint(self, step: int, session: str, write: Callable[[Path], None]) -> None:
        """Store the files of one learner rank. Each rank calls this method once.

        The method calls `write` with a folder, and `write` writes the files into this folder."""
        ...

    def seal(self, step: int, session: str, keep: int, protected: Collection[int] = ()) -> None:
        """Seal a checkpoint after all ranks have written their files, and delete old checkpoints.

        The method keeps the newest `keep` checkpoints and the checkpoints of the steps `protected`. It deletes all
        other checkpoints, damaged checkpoints, and checkpoints of later steps, which an attempt before a resume
        wrote."""
        ...

    def keep_best(self, step: int, record: JsonMapping) -> None:
        """Copy the weights of a checkpoint to the folder BEST. They replace the previous best weights.

        `record` is the evaluation of the step. The method writes it into the folder last."""
        ...

    def best_step(self) -> int | None:
        """Return the step of the weights in the folder BEST; None if the folder has no weights."""
        ...

    def local_copy(self, step: int) -> AbstractContextManager[Path]:
        """Return a context manager that yields a local folder with the files of a checkpoint.

        Several ranks of one machine may call this method at the same time."""
        ...


class LocalRunStore:
    """The store of a run in the run's folder. The folder must be on a disk that all roles can access."""

    keeps_unflushed = True

    def __init__(self, path: Path) -> None:
        self._path = path
        self._checkpoints = path / "checkpoints"
        self._damaged: set[int] = set()
        self._checked: dict[int, int] = {}  # modification time of the manifest, by step of an undamaged checkpoint
        self.uri = str(path)

    def check(self) -> None:
        pass  # `RunFolder.create` reports errors of the folder

    def holds_run(self) -> bool:
        return (self._path / "config.yaml").is_file()

    def next_session(self) -> str:
        return uuid.uuid4().hex

    def push(self) -> None:
        for name in RECORDS:
            if (self._path / name).is_file():
                fsync(self._path / name)

    def pull(self, name: str) -> str | None:
        return None

    def keep(self, path: Path) -> None:
        pass

    def checkpoints(self) -> list[int]:
        # Other entries, such as step-07 or a file step-7, are not of this program. It neither reads nor deletes them.
        found = [(re.fullmatch(r"step-(0|[1-9][0-9]*)", p.name), p) for p in self._checkpoints.glob("step-*")]
        return sorted(int(m[1]) for m, path in found if m and path.is_dir())

    def newest_valid(self) -> int:
        for step in reversed(self.checkpoints()):
            if not (fault := self._fault(step)):
                return step
            if step not in self._damaged:
                log.warning("checkpoint %s/step-%d is ignored: %s", self._checkpoints, step, fault)
            self._damaged.add(step)
        return 0

    def _fault(self, step: int) -> str:
        """Return a message about damaged files of a checkpoint; "" if no file is damaged."""
        folder = self._checkpoints / f"step-{step}"
        try:
            written = (folder / MANIFEST).stat().st_mtime_ns
            if self._checked.get(step) == written:
                return ""
            fault = manifest.fault(folder, manifest.parse((folder / MANIFEST).read_bytes()))
        except OSError as e:
            return f"{MANIFEST} cannot be read ({e.strerror})"
        except ValueError as e:
            return f"{MANIFEST} is damaged ({one_line(e)})"
        if not fault:
            self._checked[step] = written
        return fault

    def write_checkpoint(self, step: int, session: str, write: Callable[[Path], None]) -> None:
        scratch = self._scratch(step, session)
        with writing(scratch):
            scratch.mkdir(parents=True, exist_ok=True)
            write(scratch)

    def seal(self, step: int, session: str, keep: int, protected: Collection[int] = ()) -> None:
        scratch, target = self._scratch(step, session), self._checkpoints / f"step-{step}"
        with writing(target):
            (scratch / MANIFEST).unlink(missing_ok=True)
            files = manifest.describe(scratch)
            (scratch / MANIFEST).write_text(json.dumps(files))
            rename(scratch, target)
        self._damaged.discard(step)
        self._checked[step] = (target / MANIFEST).stat().st_mtime_ns
        found = self.checkpoints()
        whole = [s for s in found if s <= step and s not in self._damaged]
        with deleting(self._checkpoints):
            for other in set(found) - set(whole[-keep:]) - (set(whole) & set(protected)):
                _delete(self._checkpoints / f"step-{other}")
            for left in self._checkpoints.glob(".step-*"):
                _delete(left)

    def keep_best(self, step: int, record: JsonMapping) -> None:
        with replacing(self._path / BEST) as scratch:
            scratch.mkdir()
            for file in (self._checkpoints / f"step-{step}").iterdir():
                if file.is_file() and file.name != MANIFEST:  # folders are skipped, because only the trainer needs them
                    _link(file, scratch / file.name)
            (scratch / EVALUATION).write_text(json.dumps(record, indent=2))

    def best_step(self) -> int | None:
        file = self._path / BEST / EVALUATION
        return step_in(file.read_bytes()) if file.is_file() else None

    def local_copy(self, step: int) -> AbstractContextManager[Path]:
        return nullcontext(self._checkpoints / f"step-{step}")

    def _scratch(self, step: int, session: str) -> Path:
        return self._checkpoints / f".step-{step}-{session}"


def step_in(evaluation: bytes) -> int | None:
    """Return the step in the bytes of a file EVALUATION. None means damage: the best weights are then copied again."""
    try:
        return int(json.loads(evaluation)["step"])
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None


def _delete(path: Path) -> None:
    """Delete a folder. Of a folder on another disk that a link names, delete the link only."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path)


def _link(file: Path, target: Path) -> None:
    """Give a file a second name. Copy the file if the file system has no hard links."""
    try:
        os.link(file, target)
    except OSError:
        shutil.copyfile(file, target)


def run_store(config: Config, path: Path) -> RunStore:
    """Return the store of the run that `config` describes. `path` is the local folder of the run."""
    if not config.run.storage:
        return LocalRunStore(path)
    from treeadv.storage.folder import join

    return object_store(join(config.run.storage, config.run.name), path)


def object_store(uri: str, path: Path) -> RunStore:
    """Return the store of the run at `uri`. `path` is the local folder of the run."""
    module, _, name = OBJECT_STORE.partition(":")
    store: RunStore = getattr(import_module(module), name)(uri, path)
    return store
