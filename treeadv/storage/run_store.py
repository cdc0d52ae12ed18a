"""Where the queue, the checkpoints and the records of a run are kept: in the run's folder, or in an object store.

The protocol, the implementation for a folder, and the choice between the two.
"""

from __future__ import annotations

import re
import shutil
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Protocol

from treeadv.config import Config
from treeadv.errors import BadInput
from treeadv.storage.disk import fsync, publish

# The implementation for a run with run.storage; it is imported only for such a run, because it needs pyarrow.
OBJECT_STORE = "treeadv.storage.object_run:ObjectRunStore"


class RunStore(Protocol):
    """Keeps one run.

    `home` is the path or URI that names the run to the queue, to `treeadv audit` and to --resume. `keeps_unflushed` tells
    whether what the queue wrote and did not flush outlives its process.
    """

    home: str
    keeps_unflushed: bool

    def check(self) -> None:
        """Raise `BadInput` unless files can be made and deleted."""
        ...

    def holds_run(self) -> bool:
        """Whether a run was begun under this name."""
        ...

    def next_session(self) -> str:
        """Return a name for the next start of the run."""
        ...

    def push(self) -> None:
        """Make the records in the run folder durable in the store."""
        ...

    def pull(self, name: str) -> str | None:
        """Return the store's copy of a record file; None where the run folder has the only copy."""
        ...

    def keep(self, path: Path) -> None:
        """Keep one more file of the run folder, which may be lost with its machine."""
        ...

    def checkpoints(self) -> list[int]:
        """Return the steps of the whole checkpoints, oldest first."""
        ...

    def write_checkpoint(self, step: int, session: str, write: Callable[[Path], None]) -> None:
        """Keep the files that `write` puts into the folder that it is given. Each learner rank calls this once."""
        ...

    def seal(self, step: int, session: str, keep: int) -> None:
        """Make a checkpoint count, now that all ranks have written it, and delete all but the newest `keep`."""
        ...

    def fetched(self, step: int) -> AbstractContextManager[Path]:
        """Hold the files of a checkpoint in a local folder. Several ranks of one machine may ask at once."""
        ...


class LocalRunStore:
    """Keeps a run in its folder. The folder must be on a disk that all roles see."""

    keeps_unflushed = True

    def __init__(self, path: Path) -> None:
        self._path = path
        self._checkpoints = path / "checkpoints"
        self.home = str(path)

    def check(self) -> None:
        pass  # `RunFolder.create` reports what is wrong with the folder

    def holds_run(self) -> bool:
        return (self._path / "config.yaml").is_file()

    def next_session(self) -> str:
        return uuid.uuid4().hex

    def push(self) -> None:
        if (self._path / "metrics.jsonl").is_file():
            fsync(self._path / "metrics.jsonl")

    def pull(self, name: str) -> str | None:
        return None

    def keep(self, path: Path) -> None:
        pass

    def checkpoints(self) -> list[int]:
        matches = [re.fullmatch(r"step-(\d+)", p.name) for p in self._checkpoints.glob("step-*")]
        return sorted(int(m[1]) for m in matches if m)

    def write_checkpoint(self, step: int, session: str, write: Callable[[Path], None]) -> None:
        scratch = self._scratch(step, session)
        scratch.mkdir(parents=True, exist_ok=True)
        write(scratch)

    def seal(self, step: int, session: str, keep: int) -> None:
        try:
            publish(self._scratch(step, session), self._checkpoints / f"step-{step}")
        except OSError as e:
            raise BadInput(f"{self._checkpoints}/step-{step}: cannot be written ({e.strerror or e})") from e
        for old in self.checkpoints()[:-keep]:
            shutil.rmtree(self._checkpoints / f"step-{old}")
        for left in self._checkpoints.glob(".step-*"):
            shutil.rmtree(left)

    def fetched(self, step: int) -> AbstractContextManager[Path]:
        return nullcontext(self._checkpoints / f"step-{step}")

    def _scratch(self, step: int, session: str) -> Path:
        return self._checkpoints / f".step-{step}-{session}"


def run_store(config: Config, path: Path) -> RunStore:
    """Return the store of a run whose folder on this machine is `path`."""
    if not config.run.storage:
        return LocalRunStore(path)
    from treeadv.storage.folder import join

    return object_store(join(config.run.storage, config.run.name), path)


def object_store(uri: str, path: Path) -> RunStore:
    """Return the store of the run at `uri`, whose folder on this machine is `path`."""
    module, _, name = OBJECT_STORE.partition(":")
    store: RunStore = getattr(import_module(module), name)(uri, path)
    return store


def named_store(run: str) -> RunStore:
    """Return the store of a run, given its folder or URI. A folder that holds no configuration is taken for a run's."""
    if "://" in run:
        return object_store(run, Path())
    from treeadv.storage.run_folder import RunFolder

    path = Path(run)
    return RunFolder.open(path, [])[0].store if (path / "config.yaml").is_file() else LocalRunStore(path)
