"""Tests real studies: cells run in their own processes, killed studies continue, and failed cells are recorded."""

from __future__ import annotations

import copy
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.study.results import TREE
from treeadv.data.model_folder import SMOLLM2
from treeadv.errors import BadInput
from treeadv.local.warmup import Warmup, warm_model
from treeadv.study.running import run_study
from treeadv.study.spec import Cell, cell_config, load_study

WARM = {"steps": 2, "batch": 4, "width": 16, "layers": 1, "tables": {"operations": 1}}
SMALL: dict[str, Any] = TREE | {
    "warmup": WARM,
    "base": {
        "sampling": {"leaves": 4, "tau": 0.1, "min_gap": 1, "max_tokens": 6, "temperature": 1.0},
        "generator": {"threads": 1},
        "learner": {"forests_per_step": 2, "dtype": "float32", "threads": 1},
        "queue": {"fsync": "none"},
    },
    "seeds": [1],
    "forests_kept": [1, 4],
}


def written(tmp_path: Path, **changes: Any) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(copy.deepcopy(SMALL) | changes, sort_keys=False))
    return path


def run(file: Path, home: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(file, home, *more), capture_output=True, text=True, timeout=600)


def command(file: Path, home: Path, *more: str) -> list[str]:
    given = [str(file), "--dir", str(home), "--models", str(file.parent / "models"), "--jobs", "1", *more]
    return [sys.executable, "-m", "treeadv.cli.main", "study", "run", *given]


def results(home: Path) -> dict[str, dict[str, Any]]:
    return {p.parent.name: json.loads(p.read_text()) for p in sorted(home.glob("cells/*/cell.json"))}


# ---- faults that are found before anything runs ----------------------------------------------------------------------
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": {}}, "either steps or tokens"),
        ({"budget": {"steps": 1, "tokens": 1}}, "either steps or tokens"),
        ({"seeds": [1, 1]}, "twice"),
        ({"test": {"seed": 901, "problems": 8}}, "not be the same problems"),
        ({"seeds": [901]}, "held-out"),
        ({"arms": {"grpo": {}}}, "no row 'treeadv'"),
        ({"arms": {"grpo": {"learner.presett": "grpo"}, "treeadv": {}}}, "did you mean learner.preset"),
        ({"arms": {"grpo": {"learner.preset": "grpoo"}, "treeadv": {}}}, "grpo"),
        ({"base": {"task": {"tables": {"hard": 0.1}}}}, "remove them"),
        ({"looks": 3}, "looks"),
    ],
)
def test_faulty_study_is_one_line_before_anything_runs(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        load_study(written(tmp_path, **changes))
    assert "\n" not in str(caught.value)


def test_shipped_studies_are_valid() -> None:
    files = sorted(Path("docs/results").glob("*.yaml"))
    assert files
    for file in files:
        assert load_study(file).name == file.stem


def test_cells_run_all_rows_of_a_seed_before_the_next(tmp_path: Path) -> None:
    grid = {"tau": {"low": {"sampling.tau": 0.1}, "high": {"sampling.tau": 0.9}}}
    analysis = TREE["analysis"] | {"baseline": "grpo/low", "comparisons": []}
    study = load_study(written(tmp_path, grid=grid, seeds=[3, 4], analysis=analysis))
    rows = ["grpo/low", "grpo/high", "treeadv/low", "treeadv/high"]
    assert [(c.row, c.seed) for c in study.cells] == [(row, seed) for seed in (3, 4) for row in rows]
    config = cell_config(study, Cell(row="treeadv/high", seed=4), tmp_path, tmp_path, 7)
    assert (config.learner.preset, config.sampling.tau, config.run.seed, config.run.steps) == ("treeadv", 0.9, 4, 7)
    assert config.task.tables.operations == 1 and config.task.source == "operator-tables"


def test_changed_file_is_refused_in_the_folder_of_the_first(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "study.yaml").write_text(written(tmp_path).read_text())
    with pytest.raises(BadInput, match="must not change"):
        run_study(written(tmp_path, seeds=[1, 2]), home, 1, tmp_path / "models", False, "")


def test_missing_model_of_an_arm_ends_the_study_before_a_cell(tmp_path: Path) -> None:
    arms = {"grpo": {"learner.preset": "grpo"}, "treeadv": {"model.path": str(tmp_path / "none")}}
    changes = {
        "warmup": None,
        "arms": arms,
        "base": SMALL["base"] | {"model": {"path": str(tmp_path)}, "task": {"source": "operator-tables"}},
    }
    with pytest.raises(BadInput, match=f"model.path={tmp_path}"):
        run_study(written(tmp_path, **changes), tmp_path / "home", 1, tmp_path / "models", False, "")
    assert not (tmp_path / "home" / "cells").exists()


# ---- whole studies ---------------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_study_goes_on_and_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    """The kill interrupts a cell, and the cell resumes. The final accuracies and the curves equal those of an
    undisturbed study."""
    file = written(tmp_path)
    assert run(file, tmp_path / "whole").returncode == 0
    process = subprocess.Popen(command(file, tmp_path / "cut"))
    steps = tmp_path / "cut" / "cells" / "grpo--seed-1" / "run" / "metrics.jsonl"
    until = time.monotonic() + 300
    while not (steps.is_file() and steps.read_text()) and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(5)  # the process of the cell ends after the study
    done = run(file, tmp_path / "cut")
    assert done.returncode == 0, done.stderr
    whole, cut = results(tmp_path / "whole"), results(tmp_path / "cut")
    assert whole.keys() == cut.keys() == {"grpo--seed-1", "treeadv--seed-1"}
    for name, cell in whole.items():
        assert [x["step"] for x in cell["looks"]] == [0, 2, 4] and cell["steps"] == 4
        assert [f["step"] for f in cell["forests"]] == [1, 4]
        assert [x["accuracy"] for x in cell["looks"]] == [x["accuracy"] for x in cut[name]["looks"]]
        assert cell["test"]["accuracy"] == cut[name]["test"]["accuracy"]
        assert cell["series"]["reward_mean"] == cut[name]["series"]["reward_mean"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_failing_cell_is_recorded_and_the_others_go_on(tmp_path: Path) -> None:
    """A learning rate of 1e30 makes the loss infinite. `--retry` runs the cell again."""
    arms = {"grpo": {"learner.preset": "grpo", "learner.lr": 1e30, "learner.max_nonfinite": 0}, "treeadv": {}}
    file = written(tmp_path, arms=arms, budget={"steps": 8})
    ended = run(file, tmp_path / "home")
    assert ended.returncode == 1, ended.stderr
    found = results(tmp_path / "home")
    assert found["grpo--seed-1"]["status"] == "failed" and "not finite" in found["grpo--seed-1"]["reason"]
    assert found["treeadv--seed-1"]["status"] == "done"
    assert run(file, tmp_path / "home", "--retry").returncode == 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_each_arm_starts_with_the_model_that_it_names(tmp_path: Path) -> None:
    """Without a warm-up, `model.path` names a model, the packaged one too, and an arm may change it."""
    warm = warm_model(Warmup.model_validate(WARM), tmp_path / "models")
    arms = {"grpo": {"model.path": str(warm.resolve())}, "treeadv": {}}
    base = SMALL["base"] | {"model": {"path": SMOLLM2, "cache": "models"}, "task": {"source": "operator-tables"}}
    file = written(tmp_path, warmup=None, arms=arms, base=base, budget={"steps": 2}, forests_kept=[1])
    done = run(file, tmp_path / "home")
    assert done.returncode == 0, done.stderr
    found = results(tmp_path / "home")
    assert found["grpo--seed-1"]["config"]["model"]["path"] == str(warm.resolve())
    start = {name: cell["looks"][0]["tokens_mean"] for name, cell in found.items()}
    assert start["grpo--seed-1"] != start["treeadv--seed-1"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_token_budget_ends_a_run_at_the_first_look_beyond_it(tmp_path: Path) -> None:
    file = written(tmp_path, budget={"tokens": 100}, arms={"grpo": {"learner.preset": "grpo"}, "treeadv": {}})
    warm_model(Warmup.model_validate(WARM), tmp_path / "models")
    assert run(file, tmp_path / "home").returncode == 0
    for cell in results(tmp_path / "home").values():
        before = [x["tokens_generated"] for x in cell["looks"]]
        assert before[-2] < 100 <= before[-1] and cell["steps"] % 2 == 0
