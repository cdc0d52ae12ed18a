"""Tests `treeadv plan`: the plans of the recipes, and the message for a recipe that does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from treeadv.cli.main import main
from treeadv.config import load
from treeadv.planning.plan import GB, make_plan

RECIPES = Path(__file__).parents[2] / "deploy" / "recipes"
QWEN3 = {"qwen3-8b": ("Qwen3-8B", 8.19), "qwen3-30b-a3b": ("Qwen3-30B-A3B", 30.53)}


@pytest.mark.parametrize("recipe", QWEN3)
def test_recipe_fits_on_gpus_of_80_gb(recipe: str) -> None:
    name, billions = QWEN3[recipe]
    plan = make_plan(load(RECIPES / f"{recipe}.yaml"), RECIPES / "models" / f"{name}.json", 80 * GB, 1000 * GB)
    assert plan.faults == ()
    assert plan.sizes.parameters / 1e9 == pytest.approx(billions, abs=0.01)


@pytest.mark.parametrize(
    ("change", "help"),
    [
        ("learner.checkpoint_activations=false", "learner.checkpoint_activations=true"),
        pytest.param("learner.count=2", "learner.count=4", marks=pytest.mark.slow),
        pytest.param("learner.accumulate=whole", "learner.accumulate=sharded", marks=pytest.mark.slow),
    ],
)
def test_learner_that_does_not_fit_names_the_option_that_helps(
    change: str, help: str, capsys: pytest.CaptureFixture
) -> None:
    model = str(RECIPES / "models" / "Qwen3-8B.json")
    assert main(["plan", str(RECIPES / "qwen3-8b.yaml"), change, "--model-config", model]) == 1
    (fault,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("does not fit"))
    assert fault.startswith("does not fit: learner needs ") and help in fault


def test_missing_model_config_is_refused(capsys: pytest.CaptureFixture) -> None:
    assert main(["plan", str(RECIPES / "qwen3-8b.yaml"), "--model-config", "nowhere.json"]) == 2
    assert "nowhere.json: no such file" in capsys.readouterr().err
