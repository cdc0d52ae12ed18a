"""The repetition of one step of a run. It starts from an earlier checkpoint and the recorded forests, and compares
the numbers."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from treeadv import wire
from treeadv.config import Config
from treeadv.data import model_folder as models
from treeadv.errors import BadForest, BadInput
from treeadv.forest import Forest
from treeadv.learning.report import StepReport
from treeadv.learning.trainer import Trainer
from treeadv.storage.run_folder import RunFolder

ForestsOfStep = Callable[[str, int], Sequence[Forest]]  # (run folder, step) -> forests of the step in training order
COMPARED = ("loss", "grad_norm")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepComparison:
    """The recorded numbers of a step and the numbers of its repetition.

    `ranks` is the number of learner ranks of the run; the repetition has one rank."""

    step: int
    recorded: dict[str, float]
    reproduced: dict[str, float]
    ranks: int

    @property
    def equal(self) -> bool:
        return self.recorded == self.reproduced

    def __str__(self) -> str:
        lines = [f"{k}: recorded {v!r}, reproduced {self.reproduced[k]!r}" for k, v in self.recorded.items()]
        verdict = "no difference" if self.equal else "DIFFERENT"
        several = self.ranks > 1 and not self.equal
        note = f" (the run had {self.ranks} ranks, which sum in another order)" if several else ""
        return f"step {self.step}: {verdict}{note}\n  " + "\n  ".join(lines)


def reproduce_step(run_dir: Path, step: int, forests_of_step: ForestsOfStep) -> StepComparison:
    """Repeat step `step`, counted from 1. Raises `BadInput` if the record or the forests of the step do not exist."""
    folder, config = RunFolder.open(run_dir, [])
    record = next((r for r in folder.read_records(step) if r["step"] == step), None)
    if record is None:
        known = (folder.last_record() or {"step": 0})["step"]
        raise BadInput(f"--step {step}: {run_dir}/metrics.jsonl has no such step (it has {known})")
    trainer = trainer_at(folder, config, step - 1, forests_of_step)
    report = _step(trainer, forests_of_step(str(folder.path), step))
    return StepComparison(
        step=step,
        recorded={k: record[k] for k in COMPARED},
        reproduced={k: getattr(report, k) for k in COMPARED},
        ranks=config.learner.count,
    )


def trainer_at(folder: RunFolder, config: Config, step: int, forests_of_step: ForestsOfStep) -> Trainer:
    """Return a trainer with the weights after `step`.

    The trainer starts from the newest checkpoint up to that step and repeats the steps after the checkpoint."""
    # The setting is that of the learner, because the order of sums depends on the number of threads.
    torch.set_num_threads(config.learner.threads or os.cpu_count() or 1)
    quiet = {"keep_log_probs": False}  # the repetition stores no files
    config = config.model_copy(update={"learner": config.learner.model_copy(update=quiet)})
    base = models.resolve(config.model.path, config.model.cache)
    found = [at for at in folder.checkpoints() if at <= step]
    with folder.open_checkpoint(found[-1]) if found else nullcontext(base) as start:
        trainer = Trainer(config, str(start), keep_dir=tempfile.gettempdir(), base_dir=str(base))
        if found:
            trainer.restore(start)
    while trainer.steps < step:
        _step(trainer, forests_of_step(str(folder.path), trainer.steps + 1))
    return trainer


def _step(trainer: Trainer, forests: Sequence[Forest]) -> StepReport:
    """Take one step. Raises `BadInput` for a forest that does not fit the model, because anyone may have written its
    file."""
    try:
        return trainer.step(forests, trainer.version)
    except BadForest as e:
        raise BadInput(str(e)) from e


def reproduce_batch(run_dir: Path, batch: Path, forests_of_step: ForestsOfStep) -> StepReport:
    """Train on a batch that the learner kept, with the weights of the batch's version.

    Raises `NonFinite` if an update is again not finite."""
    folder, config = RunFolder.open(run_dir, [])
    name = re.fullmatch(r"nonfinite-version-(\d+)\.arrow", batch.name)
    if name is None:
        raise BadInput(f"--batch {batch} is not a batch that a learner kept (nonfinite-version-V.arrow)")
    forests, _ = wire.read_file(batch)
    version = int(name[1])
    step = max((r["step"] for r in folder.read_records() if r["version"] <= version), default=0)
    trainer = trainer_at(folder, config, step, forests_of_step)
    if trainer.version != version:
        raise BadInput(f"--batch {batch}: no step of {run_dir} ends with version {version}")
    trainer.config = config.model_copy(update={"learner": config.learner.model_copy(update={"max_nonfinite": 0})})
    return _step(trainer, forests)
