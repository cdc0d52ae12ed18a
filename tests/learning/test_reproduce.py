"""Tests that a step repeated from a checkpoint and the journal gives the recorded numbers."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch

from actors.cli import main
from tests.learning import tiny
from tests.learning.test_trainer import FORESTS
from treeadv.errors import BadInput
from treeadv.learning.report import NonFinite
from treeadv.learning.trainer import Trainer
from treeadv.local.reproduce import reproduce_batch, reproduce_step
from treeadv.storage.run_folder import RunFolder


def batch_of(_: str, step: int):
    """Return the forests of a step in the order of the journal. Each step trained them in another order."""
    return FORESTS[step % 3 :] + FORESTS[: step % 3]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return recorded(tmp_path_factory.mktemp("runs"))


def recorded(place: Path, **learner) -> Path:
    """Make a run with five recorded steps and with checkpoints of steps 2 and 4."""
    model = tiny.folder(place, "smollm")
    config = tiny.config(model=model, steps=5, schedule="cosine", threads=1, **learner)
    folder = RunFolder(place / "run")
    folder.path.mkdir()
    (folder.path / "config.yaml").write_text(config.to_yaml())
    torch.set_num_threads(1)
    trainer = Trainer(config, model)
    for step in range(1, 2 if config.learner.lr > 1 else 6):
        report = trainer.step(batch_of("", step), trainer.version)
        folder.record({"step": step, **dataclasses.asdict(report)})
        if step in (2, 4) or config.learner.lr > 1:
            trainer.save(folder.path / "checkpoints" / f"step-{step}")
    return folder.path


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5])
def test_reproduced_step_equals_its_record(run, step):
    comparison = reproduce_step(run, step, batch_of)
    assert comparison.equal, str(comparison)
    assert "no difference" in str(comparison)


def test_reproduced_adapter_step_equals_its_record(tmp_path):
    """Step 1 has no earlier checkpoint, so the adapter is initialised from the seed of the run."""
    run = recorded(tmp_path, lora_rank=2)
    for step in (1, 2, 3):
        comparison = reproduce_step(run, step, batch_of)
        assert comparison.equal, str(comparison)


def test_changed_forest_gives_a_different_result(run):
    def changed(where: str, step: int):
        first, *rest = batch_of(where, step)
        return [dataclasses.replace(first, reward=1 - first.reward), *rest]

    comparison = reproduce_step(run, 5, changed)
    assert not comparison.equal and "DIFFERENT" in str(comparison)


def test_forests_come_from_the_journal_of_the_run(run):
    asked = []
    reproduce_step(run, 4, lambda where, step: asked.append((where, step)) or batch_of(where, step))
    assert asked == [(str(run), 3), (str(run), 4)]


def test_step_without_a_record_is_refused(run):
    with pytest.raises(BadInput, match=r"--step 9: .*metrics.jsonl has no such step \(it has 5\)"):
        reproduce_step(run, 9, batch_of)


def test_command_in_the_nonfinite_error_runs_the_batch_again(tmp_path):
    """The weights overflow because the learning rate is too large. The batch then fails again with the same weights."""
    run = recorded(tmp_path, lr=1e30, max_nonfinite=0)
    trainer = Trainer(RunFolder.open(run, [])[1], f"{tmp_path}/smollm-0", keep_dir=run)
    trainer.step(batch_of("", 1), 0)
    with pytest.raises(NonFinite) as e:
        trainer.step(FORESTS, 1)
    command = re.search(r"treeadv reproduce RUN --batch (\S+)$", str(e.value))
    assert command is not None and Path(command[1]) == e.value.batch
    with pytest.raises(NonFinite):
        reproduce_batch(run, e.value.batch, batch_of)
    assert main(["reproduce", str(run), "--batch", str(e.value.batch)]) == 1


def test_step_of_several_updates_is_reproduced(tmp_path):
    run = recorded(tmp_path, updates_per_batch=2, passes_per_batch=2, preset="gspo")
    for step in (1, 2, 4):
        comparison = reproduce_step(run, step, batch_of)
        assert comparison.equal, str(comparison)


def test_file_that_is_no_kept_batch_is_refused(run, capsys):
    assert main(["reproduce", str(run), "--batch", str(run / "config.yaml")]) == 2
    assert "not a batch that a learner kept" in capsys.readouterr().err
