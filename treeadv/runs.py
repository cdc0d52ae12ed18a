"""The folder of a run: what it holds, and where a run that was stopped goes on.

    config.yaml     resolved configuration          summary.json  final figures
    metrics.jsonl   one record an optimizer step    report.html   curves and trees
    replay/         journal and Arrow segments      checkpoints/step-N  Hugging Face folder and trainer state
    targets.json    addresses of /metrics, in Prometheus' file_sd form
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from treeadv import config as configuration
from treeadv.config import Config
from treeadv.errors import BadInput


@dataclass(frozen=True, slots=True)
class RunFolder:
    path: Path

    @classmethod
    def create(cls, config: Config, name: str) -> RunFolder:
        """Make a new run's folder; one that exists is refused."""
        path = Path(config.run.root) / (config.run.name or name)
        try:
            path.mkdir(parents=True)
        except FileExistsError as e:
            raise BadInput(f"run folder {path} exists: choose another run.name, or go on with it by --resume {path}") from e
        except OSError as e:
            raise BadInput(f"run folder {path}: cannot be made ({e.strerror}); choose another run.root") from e
        write_atomically(path / "config.yaml", config.to_yaml())
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> tuple[RunFolder, Config]:
        """An existing run and its configuration."""
        if not (path / "config.yaml").is_file():
            raise BadInput(f"{path}: not a run folder (no config.yaml)")
        return cls(path), configuration.load(path / "config.yaml")

    def checkpoints(self) -> list[tuple[int, Path]]:
        """(step, folder) of the whole checkpoints, oldest first. A folder gets its final name only when it is complete."""
        found = (self.path / "checkpoints").glob("step-*")
        return sorted((int(p.name.removeprefix("step-")), p) for p in found)

    def restart_point(self, base: Path) -> tuple[int, Path]:
        """(step, model folder) that a run goes on from: its last checkpoint, else step 0 of the `base` model."""
        whole = self.checkpoints()
        return whole[-1] if whole else (0, base)

    def records(self) -> list[dict[str, Any]]:
        path = self.path / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []

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
