"""The folder of a run on this machine.

    config.yaml     resolved configuration          summary.json  final figures
    metrics.jsonl   one record an optimizer step    report.html   curves and trees
    replay/         journal and payload files       checkpoints/step-N  Hugging Face folder and trainer state
    targets.json    addresses of /metrics, in the form of Prometheus' file_sd

With run.storage the object store keeps the run (`treeadv.storage.object_run`), and any machine makes this folder from
it."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager
from io import BytesIO
from pathlib import Path
from typing import Any

from treeadv import config as configuration
from treeadv.config import Config
from treeadv.errors import BadInput, one_line
from treeadv.storage.disk import fsync, replace_file, replacing, writing
from treeadv.storage.lock import LocalLock
from treeadv.storage.run_store import LocalRunStore, RunStore, object_store, run_store


class RunFolder:
    """One run: its folder on this machine, and the store that keeps the run."""

    def __init__(self, path: Path, store: RunStore | None = None) -> None:
        """Without `store` the folder itself keeps the run."""
        self.path = path
        self.store: RunStore = store or LocalRunStore(path)

    @classmethod
    def of(cls, path: Path, config: Config) -> RunFolder:
        """Return the folder at `path` of the run that `config` describes."""
        return cls(path, run_store(config, path))

    @classmethod
    def create(cls, config: Config, name: str) -> tuple[RunFolder, Config, LocalLock]:
        """Make the folder of a new run, called run.name or else `name`, and lock it.

        Returns the folder, the configuration with that name, and the lock of this process. The folder is complete or
        not there. Raises `BadInput` if the run exists.
        """
        config = config.model_copy(update={"run": config.run.model_copy(update={"name": config.run.name or name})})
        path = Path(config.run.root) / config.run.name
        folder = cls.of(path, config)
        folder.store.check()
        if path.exists() and any(path.iterdir()):
            raise BadInput(f"run folder {path} exists: choose another run.name, or resume the run with --resume {path}")
        if folder.store.holds_run():
            home = folder.store.home
            raise BadInput(
                f"run.storage: {home} holds a run: choose another run.name, or resume it by --resume '{home}'"
            )
        lock = _make_complete(path, config)
        try:
            folder.store.push()
        except BadInput:
            shutil.rmtree(path)
            lock.release()
            raise
        return folder, config, lock

    @classmethod
    def open(cls, path: Path, overrides: list[str]) -> tuple[RunFolder, Config]:
        """Return an existing run and its configuration, with `overrides` for the steps to come."""
        if not (path / "config.yaml").is_file():
            raise BadInput(f"{path}: not a run folder (no config.yaml)")
        config = configuration.load(path / "config.yaml", overrides)
        return cls.of(path, config), config

    @property
    def home(self) -> str:
        """The path or URI that names the run to the queue, to `treeadv audit` and to --resume."""
        return self.store.home

    @property
    def accepted(self) -> bool:
        """Whether a driver has started the run: its journal and its trainer have accepted it (`rewind`)."""
        return (self.path / "metrics.jsonl").is_file()

    # ---- checkpoints -------------------------------------------------------------------------------------------------
    def checkpoints(self) -> list[int]:
        """Return the steps of the whole checkpoints, oldest first."""
        return self.store.checkpoints()

    def last_checkpoint(self) -> int:
        """Return the step that the run would resume from, that of the newest whole checkpoint; 0 if there is none."""
        return self.store.newest_whole()

    def checkpoint(self, step: int) -> Path:
        """Return where the files of a checkpoint lie on this machine, if they do."""
        return self.path / "checkpoints" / f"step-{step}"

    def open_checkpoint(self, step: int) -> AbstractContextManager[Path]:
        """Hold the files of a whole checkpoint in a local folder."""
        return self.store.fetched(step)

    # ---- requests to the driver --------------------------------------------------------------------------------------
    def forget_end(self) -> None:
        """Delete what tells of the last end of the run, and the requests made since."""
        self.take_request()
        (self.path / "summary.json").unlink(missing_ok=True)

    def request(self, counts: dict[str, int]) -> None:
        """Ask the driver of this run for other numbers of actors, by role. Raises `BadInput` if the run has ended."""
        if (self.path / "summary.json").is_file():
            raise BadInput(
                f"{self.path}: the run has ended; resume it by treeadv train --resume {self.path}, then ask again"
            )
        for role, count in counts.items():
            self.write(f"scale-{role}.json", count)

    def take_request(self) -> dict[str, int]:
        """Return what was requested since the last call, by role."""
        counts = {}
        for path in self.path.glob("scale-*.json"):
            taken = path.rename(path.with_name(f".{path.name}"))  # a later request is a new file
            counts[path.stem.removeprefix("scale-")] = json.loads(taken.read_text())
            taken.unlink()
        return counts

    # ---- records -----------------------------------------------------------------------------------------------------
    def records(self, last: float = math.inf) -> list[dict[str, Any]]:
        """Return the records that `read_records` yields. All of them are in memory."""
        return list(self.read_records(last))

    def last_record(self) -> dict[str, Any] | None:
        """Return the record of the last step; None if there is none. Raises as `read_records` does."""
        newest = deque(self.read_records(), maxlen=1)
        return newest[0] if newest else None

    def read_records(self, last: float = math.inf) -> Iterator[dict[str, Any]]:
        """Yield the records of the steps up to `last`, without an unfinished last line of a driver that was killed.

        Raises `BadInput` for a damaged record of one of these steps. Lines after the record of step `last` are not
        read.
        """
        path = self.path / "metrics.jsonl"
        step = 0
        with path.open("rb") if path.is_file() else BytesIO() as lines:
            for number, line in enumerate(lines, 1):
                if not line.endswith(b"\n") or step >= last:
                    return
                try:
                    record = json.loads(line)
                    step = record["step"]
                    if step > last:
                        return
                except (ValueError, KeyError, TypeError, RecursionError) as e:
                    raise BadInput(
                        f"{path}: line {number} is damaged ({one_line(e)}): restore the file, or delete it and"
                        " lose its records"
                    ) from e
                yield record

    def rewind(self, step: int) -> None:
        """Forget the records of steps after `step`, which are taken again.

        The store's copy is preferred: another driver may have continued the run without this folder.
        """
        kept = self.store.pull("metrics.jsonl")
        if kept is not None:
            replace_file(self.path / "metrics.jsonl", kept)
        with replacing(self.path / "metrics.jsonl") as scratch, scratch.open("w") as file:
            file.writelines(json.dumps(r) + "\n" for r in self.read_records(step))

    def record(self, record: dict[str, Any]) -> None:
        """Append the record of one step."""
        path = self.path / "metrics.jsonl"
        with writing(path), path.open("a") as f:
            f.write(json.dumps(record) + "\n")

    def write(self, name: str, value: Any) -> None:
        """Write JSON beside the records, whole or not at all."""
        replace_file(self.path / name, json.dumps(value, indent=2) + "\n")


def named_store(run: str) -> RunStore:
    """Return the store of a run, given its folder or URI. A folder that holds no configuration is taken for a run's."""
    if "://" in run:
        return object_store(run, Path())
    path = Path(run)
    return RunFolder.open(path, [])[0].store if (path / "config.yaml").is_file() else LocalRunStore(path)


def _make_complete(path: Path, config: Config) -> LocalLock:
    """Make a run folder with its configuration, locked by this process, or raise `BadInput` and leave nothing."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        scratch.mkdir(parents=True)
        (scratch / "config.yaml").write_text(config.to_yaml())
        fsync(scratch / "config.yaml")
        lock = LocalLock(scratch)  # it stays with the folder under the new name
        os.rename(scratch, path)  # refused where a folder with files has that name
        fsync(path.parent)
        return lock
    except OSError as e:
        raise BadInput(f"run folder {path}: cannot be made ({e.strerror}); choose another run.root") from e
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
