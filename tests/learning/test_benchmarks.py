"""Runs the benchmarks with small shapes, and checks their output."""

from __future__ import annotations

import argparse
import json

import pytest

from actors.benchmarks import learner, weights
from actors.benchmarks.synthetic import flattened, synthetic_forest
from benchmarks import gpu
from tests.learning import tiny
from treeadv.learning.trainer import Trainer


def lines(capsys) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]


@pytest.mark.parametrize("sharing", [0.3, 0.5, 0.7])
def test_synthetic_forest_has_the_requested_sharing(sharing):
    f = synthetic_forest(16, 64, sharing, 10, 100)
    assert f.sharing == pytest.approx(sharing, abs=0.01) and f.leaves == 16 and f.trees == 4
    flat = flattened(f)
    assert sum(g.tokens for g in flat) == f.expanded_tokens == 16 * 64
    assert all(g.segments == 1 and len(g.prompt) == 10 for g in flat)


def test_learner_benchmark_trains_every_flat_leaf(tmp_path):
    """The learner leaves out a forest whose advantages are 0, and one leaf has no other leaf to differ from."""
    config = learner._config(argparse.Namespace(dtype="float32", microbatch=100))
    trainer = Trainer(config, tiny.folder(tmp_path, "smollm"))
    flat = flattened(synthetic_forest(8, 20, 0.5, 8, 32))
    assert trainer.step(flat, 0).forests_without_gradient == 0


def test_learner_benchmark_prints_a_line_for_each_case(tmp_path, capsys):
    model = tiny.folder(tmp_path, "smollm")
    options = "--leaves 8 --step 16 --sharing 0.5 0.7 --length 20 --prompt 8 --rounds 1 --threads 1"
    learner.main(["--model", model, *options.split()])
    rows = lines(capsys)
    assert [r["sharing"] for r in rows] == pytest.approx([0.5, 0.7], abs=0.02)
    for r in rows:
        assert r["leaves"] == 8 and min(r["tree_s"], r["flat_s"], r["tree_cpu_s"]) > 0
        assert r["forests"] == 2 and r["bound"] == (2 * 8 + r["tokens"]) / (16 * 8 + r["expanded_tokens"])
        assert r["ratio_to_bound"] == pytest.approx(r["tree_s"] / r["flat_s"] / r["bound"])


@pytest.mark.slow
def test_gpu_script_checks_times_and_learns_on_cpu(capsys):
    assert gpu.main(["--device", "cpu", "--rounds", "1", "--learning-steps", "20"]) == 0
    check, step, learning = lines(capsys)
    assert check["ok"] and max(check["float32"], check["cut"]) < 1e-5
    assert 0 < step["bound"] < 1 and step["tree_s"] > 0
    assert learning["last"] > 0.6 > learning["first"]


@pytest.mark.slow  # takes half a minute
def test_gpu_script_fails_when_gradients_differ(capsys, monkeypatch):
    expanded = gpu._expanded
    monkeypatch.setattr(
        "benchmarks.gpu._expanded", lambda f: expanded(synthetic_forest(8, 413, 0.5757, 301, 512, seed=9))
    )
    monkeypatch.setattr("benchmarks.gpu._step", lambda *_: {})
    monkeypatch.setattr("benchmarks.gpu._learning", lambda *_: {})
    assert gpu.main(["--device", "cpu"]) == 1
    assert not lines(capsys)[0]["ok"]


@pytest.mark.slow  # starts Ray, a learner and a generator
def test_weights_benchmark_measures_publication_and_memory(tmp_path, capsys):
    model = tiny.folder(tmp_path, "llama")
    weights.main(["--model", model, "--layers", "1", "2", "--updates", "2"])
    rows = lines(capsys)
    assert [r["way"] for r in rows] == ["machine", "publication", "memory", "memory"] * 2
    small, large = (r for r in rows if r["way"] == "publication")
    assert 0 < small["mb"] < large["mb"]
    for r in (small, large):
        assert r["seconds"] >= r["learner_pause_s"] + r["generator_pause_s"] > 0
    for r in rows:
        if r["way"] == "memory":
            assert r["peak_mb"] >= r["private_mb"] > 0
