"""The folder of a run: what it holds, and where a run that was stopped goes on.

    config.yaml     resolved configuration          summary.json  final figures
    metrics.jsonl   one record an optimizer step    report.html   curves and trees
    replay/         journal and Arrow segments      checkpoints/step-N  Hugging Face folder and trainer state
    targets.json    addresses of /metrics, in Prometheus' file_sd form

With run.storage the object store holds the run (treeadv.storage.run_store), and any machine makes this folder anew from it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treeadv import config as configuration
from treeadv.config import Config
from treeadv.errors import BadInput
from treeadv.storage.disk import fsync

if TYPE_CHECKING:
    from treeadv.storage.run_store import Storage


@dataclass(frozen=True, slots=True)
class RunFolder:
    path: Path
    storage: Storage | None = None

    @classmethod
    def of(cls, path: Path, config: Config) -> RunFolder:
        if not config.run.storage:
            return cls(path)
        from treeadv.storage.run_store import Storage  # pyarrow only for those who need it

        return cls(path, Storage.of(config))

    @classmethod
    def create(cls, config: Config, name: str) -> tuple[RunFolder, Config]:
        """Make a new run's folder, called run.name or else `name`, and its configuration with the name; one that exists is refused."""
        config = config.model_copy(update={"run": config.run.model_copy(update={"name": config.run.name or name})})
        path = Path(config.run.root) / config.run.name
        folder = cls.of(path, config)
        if folder.storage:
            folder.storage.check()
            if folder.storage.holds_run():
                uri = folder.storage.uri
                raise BadInput(f"run.storage: {uri} holds a run: choose another run.name, or go on with it by --resume '{uri}'")
        try:
            path.mkdir(parents=True)
        except FileExistsError as e:
            raise BadInput(f"run folder {path} exists: choose another run.name, or go on with it by --resume {path}") from e
        except OSError as e:
            raise BadInput(f"run folder {path}: cannot be made ({e.strerror}); choose another run.root") from e
        write_atomically(path / "config.yaml", config.to_yaml())
        folder.upload()
        return folder, config

    @classmethod
    def open(cls, path: Path, overrides: list[str]) -> tuple[RunFolder, Config]:
        """An existing run and its configuration, with `overrides` for the steps to come (run.steps to go on further, say)."""
        if not (path / "config.yaml").is_file():
            raise BadInput(f"{path}: not a run folder (no config.yaml)")
        config = configuration.load(path / "config.yaml", overrides)
        return cls.of(path, config), config

    @property
    def home(self) -> str:
        """The path or URI by which the run is known to the queue, to `treeadv audit` and to --resume."""
        return self.storage.uri if self.storage else str(self.path)

    def checkpoints(self) -> list[tuple[int, Path]]:
        """(step, folder) of the whole checkpoints, oldest first; with run.storage `at_hand` brings the folder here first."""
        if self.storage:
            return [(step, self.checkpoint(step)) for step in self.storage.checkpoints()]
        found = (self.path / "checkpoints").glob("step-*")  # a folder gets its final name only when it is complete
        return sorted((int(p.name.removeprefix("step-")), p) for p in found)

    def checkpoint(self, step: int) -> Path:
        return self.path / "checkpoints" / f"step-{step}"

    @contextmanager
    def at_hand(self, step: int) -> Iterator[Path]:
        """The folder of a whole checkpoint; one that was brought here from the store is deleted again."""
        folder = self.checkpoint(step)
        with self.storage.fetched(step, folder) if self.storage else nullcontext():
            yield folder

    def upload(self) -> None:
        """Copy the records to run.storage, or else to the disk for good."""
        if self.storage:
            self.storage.push(self.path)
        elif (self.path / "metrics.jsonl").is_file():
            fsync(self.path / "metrics.jsonl")

    def last_checkpoint(self) -> int:
        """The step that the run would go on from; 0 when it has no checkpoint."""
        whole = self.checkpoints()
        return whole[-1][0] if whole else 0

    def forget_end(self) -> None:
        """The run goes on: how it ended last time, and what was asked of it since, hold no longer."""
        self.take_request()
        (self.path / "summary.json").unlink(missing_ok=True)

    def request(self, wanted: dict[str, int]) -> None:
        """Ask the driver of this run for other numbers of actors, by role. Refused where the run has ended."""
        if (self.path / "summary.json").is_file():
            raise BadInput(f"{self.path}: the run has ended; go on with it by treeadv train --resume {self.path}, and ask then")
        for role, number in wanted.items():
            self.write(f"scale-{role}.json", number)

    def take_request(self) -> dict[str, int]:
        """What was asked since the last look; {} when nothing was."""
        wanted = {}
        for path in self.path.glob("scale-*.json"):
            taken = path.rename(path.with_name(f".{path.name}"))  # what is asked from now on is a new file
            wanted[path.stem.removeprefix("scale-")] = json.loads(taken.read_text())
            taken.unlink()
        return wanted

    def records(self) -> list[dict[str, Any]]:
        """Of the steps so far. An unfinished last line, of a driver killed over it, is none."""
        path = self.path / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
        try:
            return [json.loads(line) for line in lines if line.endswith("\n")]
        except ValueError as e:
            raise BadInput(f"{path}: damaged, a line is not JSON ({e})") from e

    def rewind(self, step: int) -> None:
        """Forget the records of steps after `step`: they will be taken again. Those up to a checkpoint of the store lie beside it; this
        folder may have missed some, when another driver went on with the run meanwhile."""
        if self.storage:
            write_atomically(self.path / "metrics.jsonl", self.storage.read("metrics.jsonl"))
        kept = [json.dumps(r) + "\n" for r in self.records() if r["step"] <= step]
        write_atomically(self.path / "metrics.jsonl", "".join(kept))

    def record(self, record: dict[str, Any]) -> None:
        with (self.path / "metrics.jsonl").open("a") as f:
            f.write(json.dumps(record) + "\n")

    def write(self, name: str, value: Any) -> None:
        """Write JSON beside the records, whole or not at all."""
        write_atomically(self.path / name, json.dumps(value, indent=2) + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Raises `BadInput` where the disk does not take it; the file that was there stays."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        scratch.write_text(text)
        fsync(scratch)
        scratch.replace(path)
        fsync(path.parent)
    except OSError as e:
        scratch.unlink(missing_ok=True)
        raise BadInput(f"{path}: cannot be written ({e.strerror or e})") from e


def home_of(run: str) -> str:
    """Where the queue and the checkpoints of a run lie, given its folder or URI."""
    if "://" in run or not (Path(run) / "config.yaml").is_file():
        return run
    return RunFolder.open(Path(run), [])[0].home
