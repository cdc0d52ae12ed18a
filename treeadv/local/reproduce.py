"""Take one optimizer step of a run again, from the checkpoint before it and the forests in the log, and compare.

    python -m treeadv.local.reproduce RUN --batch RUN/nonfinite-version-V.arrow

runs a batch that gave no finite step once more, with the weights that it met.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from treeadv import wire
from treeadv.config import Config
from treeadv.data import model_folder as models
from treeadv.errors import BadInput
from treeadv.forest import Forest
from treeadv.learning.report import NonFinite, StepReport
from treeadv.learning.trainer import Trainer
from treeadv.storage.run_folder import RunFolder

ForestsOfStep = Callable[[str, int], Sequence[Forest]]  # (run folder, step) -> its forests in training order


@dataclass(frozen=True, slots=True)
class Difference:
    """What was recorded of a step and what came out now, with the number of ranks that the record is of (a replay has one)."""

    step: int
    recorded: dict[str, float]
    replayed: dict[str, float]
    ranks: int

    @property
    def none(self) -> bool:
        return self.recorded == self.replayed

    def __str__(self) -> str:
        parts = [f"{k}: recorded {v!r}, again {self.replayed[k]!r}" for k, v in self.recorded.items()]
        verdict = "no difference" if self.none else "DIFFERENT"
        note = f" (the record is of {self.ranks} ranks, which add in another order)" if self.ranks > 1 and not self.none else ""
        return f"step {self.step}: {verdict}{note}\n  " + "\n  ".join(parts)


def replay_step(run_dir: Path, step: int, forests_of_step: ForestsOfStep) -> Difference:
    """Run step `step` (1 is the first) again; `BadInput` if the run did not record it or its log does not hold its forests."""
    folder, config = RunFolder.open(run_dir, [])
    record = next((r for r in folder.records() if r["step"] == step), None)
    if record is None:
        raise BadInput(f"--step {step}: {run_dir}/metrics.jsonl records no such step (it has {len(folder.records())})")
    trainer = trainer_at(folder, config, step - 1, forests_of_step)
    report = trainer.step(_forests(folder, step, forests_of_step), step - 1)
    keys = ("loss", "grad_norm")
    return Difference(step, {k: record[k] for k in keys}, {k: getattr(report, k) for k in keys}, config.learner.count)


def trainer_at(folder: RunFolder, config: Config, version: int, forests_of_step: ForestsOfStep) -> Trainer:
    """A trainer with the weights of `version`: the last checkpoint not newer, and the steps since then taken again."""
    torch.set_num_threads(config.learner.threads or os.cpu_count() or 1)  # as the learner: sums depend on it
    base = models.resolve(config.model.path, config.model.cache)
    found = [at for at, _ in folder.checkpoints() if at <= version]
    with folder.at_hand(found[-1]) if found else nullcontext(base) as start:
        trainer = Trainer(config, str(start), keep_dir=tempfile.gettempdir(), base_dir=str(base))
        if found:
            trainer.restore(start)
    while trainer.version < version:
        trainer.step(_forests(folder, trainer.version + 1, forests_of_step), trainer.version)
    return trainer


def rerun_batch(run_dir: Path, batch: Path, forests_of_step: ForestsOfStep) -> StepReport:
    """Run a kept batch with the weights that it met; raises `NonFinite` again if it still gives no finite step."""
    folder, config = RunFolder.open(run_dir, [])
    name = re.fullmatch(r"nonfinite-version-(\d+)\.arrow", batch.name)
    if name is None:
        raise BadInput(f"--batch {batch}: not a batch that a learner kept (nonfinite-version-V.arrow)")
    forests, _ = wire.read_file(batch)
    trainer = trainer_at(folder, config, int(name[1]), forests_of_step)
    return trainer.step(forests, trainer.version)


def _forests(folder: RunFolder, step: int, forests_of_step: ForestsOfStep) -> Sequence[Forest]:
    return forests_of_step(str(folder.path), step)


def main(argv: list[str] | None = None) -> int:
    from treeadv.replay.history import forests_of_step

    p = argparse.ArgumentParser(prog="python -m treeadv.local.reproduce", description=__doc__)
    p.add_argument("run_dir", type=Path, metavar="RUN")
    p.add_argument("--batch", type=Path, required=True, help="the Arrow file that the learner kept")
    args = p.parse_args(argv)
    try:
        print(rerun_batch(args.run_dir, args.batch, forests_of_step))
    except (BadInput, NonFinite) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2 if isinstance(e, BadInput) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
