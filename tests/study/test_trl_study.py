"""Tests TRL's trainer as a baseline of a study: its settings, and a real run of two steps."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.study.test_running import run, written
from treeadv import config as configuration
from treeadv.errors import BadInput

pytest.importorskip("trl", reason="the baseline is TRL's trainer: pip install --no-deps trl")
from benchmarks.trl_study import settings


def row(*changes: str) -> configuration.Config:
    given = ["task.source=operator-tables", "sampling.leaves=4", "learner.forests_per_step=2", *changes]
    return configuration.build({}, given, "row")


def test_settings_of_trl_are_those_of_the_row(tmp_path: Path) -> None:
    theirs = settings(row("learner.preset=grpo", "learner.lr=0.003", "learner.betas=[0.8,0.9]"), tmp_path)
    assert (theirs.per_device_train_batch_size, theirs.num_generations) == (8, 4)
    assert (theirs.learning_rate, theirs.adam_beta1, theirs.adam_beta2) == (0.003, 0.8, 0.9)
    assert theirs.loss_type == "bnpo" and theirs.beta == 0.0 and theirs.epsilon == 0.2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["learner.preset=treeadv"], "choose a row of flat answers"),
        (["learner.preset=gspo"], "choose a row of flat answers"),
        (["learner.preset=grpo", "learner.updates_per_batch=2"], "one update a batch"),
        (["learner.preset=grpo", "learner.schedule=cosine"], "constant learning rate"),
    ],
)
def test_row_that_trl_cannot_repeat_is_refused(changes: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=message):
        settings(row(*changes), tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_trl_repeats_a_row_of_a_study(tmp_path: Path) -> None:
    assert run(written(tmp_path), tmp_path / "home").returncode == 0
    command = [sys.executable, "-m", "benchmarks.trl_study", str(tmp_path / "home")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "home" / "trl" / "comparison.json").read_text())
    assert found["seeds"] == [1] and found["row"] == "grpo"
    result = json.loads((tmp_path / "home" / "trl" / "seed-1.json").read_text())
    cell = json.loads((tmp_path / "home" / "cells" / "grpo--seed-1" / "cell.json").read_text())
    assert [x["step"] for x in result["looks"]] == [x["step"] for x in cell["looks"]]
    assert result["looks"][0]["accuracy"] == cell["looks"][0]["accuracy"], "both start from the same model"
    assert result["looks"][-1]["tokens_generated"] > 0
