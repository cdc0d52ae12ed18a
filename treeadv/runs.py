"""The folder of a run: what it holds, and where a run that was stopped goes on.

    config.yaml     resolved configuration          summary.json  final figures
    metrics.jsonl   one record an optimizer step    report.html   curves and trees
    replay/         journal and Arrow segments      checkpoints/step-N  Hugging Face folder and trainer state
    targets.json    addresses of /metrics, in Prometheus' file_sd form
"""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from treeadv import config as configuration
from treeadv.config import Config
from treeadv.errors import BadInput


@dataclass(frozen=True, slots=True)
class RunFolder:
    path: Path

    @classmethod
    def create(cls, config: Config, name: str) -> tuple[RunFolder, Config]:
        """Make a new run's folder, called run.name or else `name`, and its configuration with the name; one that exists is refused."""
        config = config.model_copy(update={"run": config.run.model_copy(update={"name": config.run.name or name})})
        path = Path(config.run.root) / config.run.name
        try:
            path.mkdir(parents=True)
        except FileExistsError as e:
            raise BadInput(f"run folder {path} exists: choose another run.name, or go on with it by --resume {path}") from e
        except OSError as e:
            raise BadInput(f"run folder {path}: cannot be made ({e.strerror}); choose another run.root") from e
        write_atomically(path / "config.yaml", config.to_yaml())
        return cls(path), config

    @classmethod
    def open(cls, path: Path, overrides: list[str]) -> tuple[RunFolder, Config]:
        """An existing run and its configuration, with `overrides` for the steps to come (run.steps to go on further, say)."""
        if not (path / "config.yaml").is_file():
            raise BadInput(f"{path}: not a run folder (no config.yaml)")
        return cls(path), configuration.load(path / "config.yaml", overrides)

    def checkpoints(self) -> list[tuple[int, Path]]:
        """(step, folder) of the whole checkpoints, oldest first. A folder gets its final name only when it is complete."""
        found = (self.path / "checkpoints").glob("step-*")
        return sorted((int(p.name.removeprefix("step-")), p) for p in found)

    def last_checkpoint(self) -> int:
        """The step that the run would go on from; 0 when it has no checkpoint."""
        whole = self.checkpoints()
        return whole[-1][0] if whole else 0

    def request(self, wanted: dict[str, int]) -> None:
        """Ask the driver of this run for other numbers of actors, by role."""
        self.write("scale.json", wanted)

    def take_request(self) -> dict[str, int]:
        """What was asked since the last look; {} when nothing was."""
        path = self.path / "scale.json"
        if not path.is_file():
            return {}
        wanted = json.loads(path.read_text())
        path.unlink()
        return wanted

    def records(self) -> list[dict[str, Any]]:
        """Of the steps so far. An unfinished last line, of a driver killed over it, is none."""
        path = self.path / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def rewind(self, step: int) -> None:
        """Forget the records of steps after `step`: they will be taken again."""
        kept = [json.dumps(r) + "\n" for r in self.records() if r["step"] <= step]
        write_atomically(self.path / "metrics.jsonl", "".join(kept))

    def record(self, record: dict[str, Any]) -> None:
        with (self.path / "metrics.jsonl").open("a") as f:
            f.write(json.dumps(record) + "\n")

    def write(self, name: str, value: Any) -> None:
        """Write JSON beside the records, whole or not at all."""
        write_atomically(self.path / name, json.dumps(value, indent=2) + "\n")


def write_atomically(path: Path, text: str) -> None:
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(text)
    scratch.replace(path)


def begin(recipe: Path | None, resume: Path | None, resume_or_start: bool, overrides: list[str]) -> tuple[RunFolder, Config, bool]:
    """The folder and configuration of a new run of `recipe`, or of one to go on with, and whether it is gone on with.

    `resume_or_start` goes on with the run of the recipe's run.name if there is one. Everything that the user wrote is checked here,
    before anything is loaded or a folder made.
    """
    if (recipe is None) == (resume is None):
        raise BadInput("give either --config RECIPE.yaml for a new run or --resume RUN for one that was stopped")
    if recipe is not None:
        config = configuration.load(recipe, overrides)
        if resume_or_start and not config.run.name:
            raise BadInput("--resume-or-start: run.name must name the run")
        there = Path(config.run.root) / config.run.name
        if not (resume_or_start and (there / "config.yaml").is_file()):
            check(config)
            return *RunFolder.create(config, f"{recipe.stem}-{datetime.now():%Y%m%d-%H%M%S}"), False
        resume = there
    assert resume is not None
    folder, config = RunFolder.open(resume, overrides)
    check(config)
    return folder, config, True


def check(config: Config) -> None:
    """What a type cannot say: names that must exist, ports that must be free. `BadInput` for the first fault."""
    from treeadv.learning.advantage import preset
    from treeadv.models import check_path
    from treeadv.rewards.verifiers import check_name
    from treeadv.tasks import problem_source

    preset(config.learner.preset, config.learner.advantage)
    check_name(config.task.verifier)
    check_path(config.model.path)
    problem_source(config.task, config.run.seed)
    if config.metrics.port:
        _check_port(config.metrics.host, config.metrics.port)


def _check_port(host: str, port: int) -> None:
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind((host, port))
        except OSError as e:
            raise BadInput(f"metrics.port={port}: cannot listen on {host}:{port} ({e.strerror}); choose another, or 0 for any") from e
