"""Tests of `python -m benchmarks.profile`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.profile import main, shares
from tests.running import recipe

STACKS = """\
run (worker.py:1);step (treeadv/learning/trainer.py:10);forward (transformers/models/llama/modeling_llama.py:9) 6
run (worker.py:1);step (treeadv/learning/trainer.py:12);backward (torch/_tensor.py:5);x (torch/autograd/graph.py:1) 11
run (worker.py:1);step (treeadv/learning/trainer.py:14);step (torch/optim/adamw.py:3) 1
run (worker.py:1);step (treeadv/learning/trainer.py:16);pack (treeadv/learning/packing.py:7);sort (numpy/x.py:2) 1
run (worker.py:1);step (treeadv/learning/trainer.py:16);pack (treeadv/learning/packing.py:8) 2
run (worker.py:1);loop (asyncio/events.py:8) 4
run (worker.py:1);_PollLikeSelector.select (selectors.py:8) 50
thread 0x7f 50
"""


def test_stack_counts_for_its_kind_of_work() -> None:
    work, other = shares(STACKS)
    assert work == {"forward": 6, "backward": 11, "optimizer": 1, "other": 7}
    assert other == {"pack (treeadv/learning/packing.py)": 3, "loop (asyncio/events.py)": 4}


@pytest.mark.slow
def test_run_is_profiled(tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = recipe(tmp_path, tiny_model, generator__count=1)
    main(["--config", str(config), "--steps", "30", "--out", str(tmp_path / "graphs")])
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    roles = [line for line in lines if "model" in line]
    assert [line["role"] for line in roles] == ["generator", "learner"]
    assert all(0 < line["forward"] < line["model"] <= 1 for line in roles if line["role"] == "learner")
    assert all(line["cpu_s"] > 0 for line in roles) and any("work" in line for line in lines)
    graphs = {f.name: f.read_text() for f in (tmp_path / "graphs").iterdir()}
    assert graphs.keys() == {"generator.svg", "learner.svg"}
    assert all("py-spy record" not in text and "CPU time of the" in text for text in graphs.values())
