"""Where the queue, the checkpoints and the records of a run are kept: in the run's folder, or in an object store.

The protocol, the implementation for a folder, and the choice between the two.
"""

from __future__ import annotations

import json
import re
import shutil
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Protocol

from treeadv.config import Config
from treeadv.errors import one_line
from treeadv.storage import manifest
from treeadv.storage.disk import fsync, publish, writing
from treeadv.visible import visible_logger

MANIFEST = "files.json"  # in the folder of a checkpoint
log = visible_logger("treeadv.storage")

# The implementation for a run with run.storage; it is imported only for such a run, because it needs pyarrow.
OBJECT_STORE = "treeadv.storage.object_run:ObjectRunStore"


class RunStore(Protocol):
    """Keeps one run.

    `home` is the path or URI that names the run to the queue, to `treeadv audit` and to --resume. `keeps_unflushed`
    tells whether what the queue wrote and did not flush outlives its process."""

    home: str
    keeps_unflushed: bool

    def check(self) -> None:
        """Raise `BadInput` unless files can be made and deleted."""
        ...

    def holds_run(self) -> bool:
        """Whether a run of this name exists."""
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
        """Return the steps of the sealed checkpoints, oldest first. Their files may have been damaged since."""
        ...

    def newest_whole(self) -> int:
        """Return the step of the newest checkpoint whose files are as they were written; 0 if there is none.

        A warning names each damaged one. The next `seal` deletes it.
        """
        ...

    def write_checkpoint(self, step: int, session: str, write: Callable[[Path], None]) -> None:
        """Keep the files that `write` puts into the folder that it is given. Each learner rank calls this once."""
        ...

    def seal(self, step: int, session: str, keep: int) -> None:
        """Make a checkpoint count, now that all ranks have written it. Delete all but the newest `keep`, damaged ones,
        and those of later steps, which the run has gone back before."""
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
        self._damaged: set[int] = set()
        self._checked: dict[int, int] = {}  # the time of the manifest by step, of checkpoints that were found whole
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

    def newest_whole(self) -> int:
        for step in reversed(self.checkpoints()):
            if not (fault := self._fault(step)):
                return step
            self._damaged.add(step)
            log.warning("checkpoint %s/step-%d is passed over: %s", self._checkpoints, step, fault)
        return 0

    def _fault(self, step: int) -> str:
        """Return what is wrong with the files of a checkpoint; "" if nothing is."""
        folder = self._checkpoints / f"step-{step}"
        try:
            written = (folder / MANIFEST).stat().st_mtime_ns
            if self._checked.get(step) == written:
                return ""
            fault = manifest.fault(folder, json.loads((folder / MANIFEST).read_text()))
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as e:  # it is no manifest
            return f"{MANIFEST} cannot be read ({one_line(e)})"
        if not fault:
            self._checked[step] = written
        return fault

    def write_checkpoint(self, step: int, session: str, write: Callable[[Path], None]) -> None:
        scratch = self._scratch(step, session)
        with writing(scratch):
            scratch.mkdir(parents=True, exist_ok=True)
            write(scratch)

    def seal(self, step: int, session: str, keep: int) -> None:
        scratch, target = self._scratch(step, session), self._checkpoints / f"step-{step}"
        with writing(target):
            (scratch / MANIFEST).unlink(missing_ok=True)
            files = manifest.describe(scratch)
            (scratch / MANIFEST).write_text(json.dumps(files))
            publish(scratch, target)
        self._damaged.discard(step)
        self._checked[step] = (target / MANIFEST).stat().st_mtime_ns
        found = self.checkpoints()
        whole = [s for s in found if s <= step and s not in self._damaged]
        for other in set(found) - set(whole[-keep:]):
            shutil.rmtree(self._checkpoints / f"step-{other}")
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
