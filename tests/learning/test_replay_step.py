"""A step taken again from checkpoint and log gives the numbers that were recorded."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.learning import tiny
from tests.learning.test_trainer import FORESTS
from treeadv.errors import BadInput
from treeadv.learning.report import NonFinite
from treeadv.learning.trainer import Trainer
from treeadv.local.reproduce import main, replay_step, rerun_batch
from treeadv.storage.run_folder import RunFolder


def batch_of(_: str, step: int):
    """The log: each step trained the forests in another order."""
    return FORESTS[step % 3 :] + FORESTS[: step % 3]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return recorded(tmp_path_factory.mktemp("runs"))


def recorded(place: Path, **learner) -> Path:
    """A run of five recorded steps, checkpoints at 2 and 4."""
    model = tiny.folder(place, "smollm")
    config = tiny.config(model=model, steps=5, schedule="cosine", threads=1, **learner)
    folder = RunFolder(place / "run")
    folder.path.mkdir()
    (folder.path / "config.yaml").write_text(config.to_yaml())
    torch.set_num_threads(1)
    trainer = Trainer(config, model)
    for step in range(1, 6):
        report = trainer.step(batch_of("", step), step - 1)
        folder.record({"step": step, **dataclasses.asdict(report)})
        if step in (2, 4):
            trainer.save(folder.path / "checkpoints" / f"step-{step}")
    return folder.path


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5])
def test_a_replayed_step_differs_by_nothing_from_its_record(run, step):
    difference = replay_step(run, step, batch_of)
    assert difference.none, str(difference)
    assert "no difference" in str(difference)


def test_a_replayed_step_of_an_adapter_differs_by_nothing_with_or_without_a_checkpoint_before_it(tmp_path):
    """Without one the adapter is drawn anew, from the run's seed and not from what the process drew before."""
    run = recorded(tmp_path, lora_rank=2)
    for step in (1, 2, 3):
        difference = replay_step(run, step, batch_of)
        assert difference.none, str(difference)


def test_a_changed_log_shows_as_a_difference(run):
    def changed(where: str, step: int):
        first, *rest = batch_of(where, step)
        return [dataclasses.replace(first, reward=1 - first.reward), *rest]

    difference = replay_step(run, 5, changed)
    assert not difference.none and "DIFFERENT" in str(difference)


def test_the_forests_are_asked_of_the_runs_log(run):
    asked = []
    replay_step(run, 4, lambda where, step: asked.append((where, step)) or batch_of(where, step))
    assert asked == [(str(run), 3), (str(run), 4)]


def test_a_step_that_was_not_recorded_is_refused(run):
    with pytest.raises(BadInput, match=r"--step 9: .*metrics.jsonl records no such step \(it has 5\)"):
        replay_step(run, 9, batch_of)


def test_the_command_in_the_error_of_a_step_that_is_not_finite_runs_its_batch_again(run):
    """An overflowing log-prob makes the uncorrected ratio infinite; the batch fails again with the same weights, and says so."""
    config = RunFolder.open(run, ["learner.correction=none"])[1]
    (run / "config.yaml").write_text(config.to_yaml())
    trainer = Trainer(config, config.model.path, keep_dir=run)
    bad = dataclasses.replace(FORESTS[0], logprob=np.full(FORESTS[0].tokens, -3e4, np.float32))
    with pytest.raises(NonFinite) as e:
        trainer.step([bad], 0)
    command = re.search(r"python -m treeadv\.learning\.replay_step (\S+) --batch (\S+)$", str(e.value))
    assert command is not None and Path(command[2]) == e.value.batch
    with pytest.raises(NonFinite):
        rerun_batch(run, e.value.batch, batch_of)
    assert main([str(run), "--batch", str(e.value.batch)]) == 1


def test_a_file_that_is_not_a_kept_batch_is_refused(run, capsys):
    assert main([str(run), "--batch", str(run / "config.yaml")]) == 2
    assert "not a batch that a learner kept" in capsys.readouterr().err
