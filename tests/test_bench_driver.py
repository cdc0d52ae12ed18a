"""Tests `treeadv bench driver` and its roles without a model."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from actors.benchmarks import driver
from actors.benchmarks.stubs.generator import ungraded
from actors.benchmarks.stubs.learner import report
from actors.benchmarks.stubs.reward import graded
from actors.benchmarks.synthetic import binary_forest
from treeadv import wire
from treeadv.errors import BadInput
from treeadv.forest import Verdict


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "0"], "--steps 0: must be at least 1"),
        (["--in-flight", "-2"], "--in-flight -2: must be at least 1"),
        (["--leaves", "3"], "--leaves 3: must be an even number of at least 4"),
    ],
)
def test_bad_number_is_refused_before_ray_starts(options: list[str], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        driver.main(options)


def test_stub_step_counts_what_it_reads() -> None:
    forests = [binary_forest(4, 3), binary_forest(8, 2)]
    step = report(forests, 1)
    assert step.leaves == 12 and step.tokens == sum(f.tokens for f in forests) and step.version == 2
    assert step.staleness == [1, 1] and not step.void


def test_forest_of_the_benchmark_is_graded_once() -> None:
    forest = ungraded(binary_forest(4, 3))
    assert not forest.graded and np.isnan(forest.reward).all()
    (read,) = wire.from_batch(wire.to_batch([graded(forest)]))
    assert read.graded and read.verdict.tolist() == [Verdict.VERIFIED] * 4


@pytest.mark.parametrize(
    "role", ["actors.generator", "actors.replay_queue", "actors.reward", "actors.benchmarks.stubs.generator"]
)
def test_role_without_a_model_imports_no_torch(role: str) -> None:
    code = f"import sys, {role}; print({{'torch', 'transformers'}} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "set()"


@pytest.mark.slow
@pytest.mark.parametrize("work", ["prepared", "drawn"])
def test_parts_add_up_to_the_pipeline(capsys: pytest.CaptureFixture[str], work: str) -> None:
    options = "--steps 4 --skip 1 --per-step 4 --in-flight 4 --leaves 4 --tokens 8"
    driver.main(["--work", work, *options.split()])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (whole,) = (r for r in rows if r["way"] == "pipeline")
    calls = [r["calls_a_forest"] for r in rows if r["way"] == "call"]
    parts = {r["part"]: r["ms_a_forest"] for r in rows if r["way"] == "part" and "of" not in r}
    assert whole["forests"] == 16 and whole["ms_a_forest"] * whole["forests_per_s"] == pytest.approx(1000, rel=0.01)
    assert sum(calls) == pytest.approx(whole["calls_a_forest"], rel=0.01)
    assert sum(parts.values()) == pytest.approx(whole["cpu_ms_a_forest"], rel=0.01)
    assert {"queue", "generator", "reward", "learner", "driver", "ray"} == set(parts)
    assert {r["role"] for r in rows if r["way"] == "memory" and r["last_mb"] > 10} == set(parts)
    (files,), (tenths,) = ([r for r in rows if r["way"] == name] for name in ("files", "tenths"))
    assert files["sound"] and files["trained"] == 20 and files["journal_mb"] > 0 and tenths["last_over_first"] > 0
