"""Tests that the recipes with the SGLang engine are complete and have no setting that the engine refuses."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engines.helpers import configure
from treeadv.config import load
from treeadv.engines.sglang.engine import SGLangEngine
from treeadv.engines.sglang.server import arguments, environment
from treeadv.errors import BadInput

RECIPES = Path(__file__).parents[2] / "deploy/recipes"
NAMES = ["sglang-cpu", "gpu-single", "gpu-node", "cluster"]


@pytest.mark.parametrize("name", NAMES)
def test_sglang_recipe_loads_and_gives_a_command_line(name: str) -> None:
    config = load(RECIPES / f"{name}.yaml")
    assert config.generator.engine == "sglang"
    line = arguments(config.generator, "MODEL", 1)
    assert line[line.index("--device") + 1] == ("cpu" if name == "sglang-cpu" else "cuda")
    assert config.learner.device == config.generator.sglang.device


@pytest.mark.sglang
@pytest.mark.skipif(importlib.util.find_spec("sglang") is None, reason="SGLang is not installed (make sglang-cpu)")
def test_sglang_parses_the_command_line_of_each_recipe() -> None:
    """SGLang's own parser reads every argument. It does not check memory and kernels, which need a GPU."""
    lines = [arguments(load(RECIPES / f"{name}.yaml").generator, "MODEL", 1) for name in NAMES]
    script = f"""
import argparse
from sglang.srt.server_args import ServerArgs
parser = argparse.ArgumentParser()
ServerArgs.add_cli_args(parser)
for line in {lines!r}:
    print(vars(parser.parse_args(line))["device"])
"""
    added = environment(configure().generator.sglang, 1)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=os.environ | added)
    assert done.stdout.split() == ["cpu", "cuda", "cuda", "cuda"], done.stderr


def test_gpu_single_recipe_asks_for_at_most_one_gpu() -> None:
    config = load(RECIPES / "gpu-single.yaml")
    assert config.generator.gpus * config.generator.count + config.learner.gpus * config.learner.count <= 1


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ({"generator": {"count": 2}}, r"generator.count=2: with generator.sglang.url one generator drives all servers"),
        ({"scaling": {"enabled": True}}, r"one generator drives all servers"),
        (
            {"run": {"root": "s3://bucket/runs"}},
            r"run.root=s3://bucket/runs: servers cannot read weights from an object store",
        ),
    ],
)
def test_unsupported_engine_setting_is_refused_before_start(overrides: dict, reason: str, tiny_model: Path) -> None:
    config = configure("http://127.0.0.1:9")
    for section, values in overrides.items():
        config = config.model_copy(update={section: getattr(config, section).model_copy(update=values)})
    with pytest.raises(BadInput, match=reason):
        asyncio.run(SGLangEngine.create(config, tiny_model, 0))
