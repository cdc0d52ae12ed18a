"""Tests the evaluation in a run with Ray. It can end the run early, and it continues after the death of the generator
that answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.injection import Run
from tests.running import finish, recipe, sound, start, steps, wait_for
from treeadv.storage.run_folder import RunFolder

ANSWERING = "actors.generator:Generator._answers"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def held_out(folder: Path) -> str:
    path = folder / "held.jsonl"
    path.write_text("".join(json.dumps({"problem": f"{i} + 1 =", "answer": str(i + 1)}) + "\n" for i in range(6)))
    return str(path)


def test_run_ends_early_and_stays_ended(tmp_path: Path, tiny_model: Path) -> None:
    """Some evaluation is not better than the previous one, because learner.lr is too small to change a verdict."""
    asked = {"eval__every": 2, "eval__data": held_out(tmp_path), "run__patience": 1, "run__steps": 10**6}
    process = start("--config", recipe(tmp_path, tiny_model, learner__lr=1e-9, **asked))
    said = finish(process, within=400)
    folder = RunFolder(tmp_path / "run")
    done, evaluated = steps(folder.path), folder.evaluations()
    assert "run.patience=1" in said and done < 10**6
    assert folder.last_checkpoint() == done == folder.records()[-1]["step"]
    values = [r["avg"]["value"] for r in evaluated]
    assert values[-1] <= max(values[:-1])
    sound(folder.path)
    finish(start("--resume", folder.path), within=300)
    assert steps(folder.path) == done and folder.evaluations() == evaluated


def test_evaluation_is_repeated_after_its_generator_dies(tmp_path: Path, tiny_model: Path) -> None:
    """The answers of a policy version do not depend on the generator, so the repeated evaluation has all answers."""
    run = Run(tmp_path, tiny_model, eval__every=20, eval__data=held_out(tmp_path), eval__samples=2)
    for _ in range(2):
        before = len(RunFolder(run.run).evaluations())
        run.kill_at(ANSWERING, "")
        run.recover("Generator")
        wait_for(lambda: len(RunFolder(run.run).evaluations()) > before, run.process, 180)  # noqa: B023 - called here
    assert "lost its generator" in run.output_so_far()
    # A step whose forests all lack a gradient leaves the version as it is.
    versions = {0: 0} | {r["step"]: r["version"] for r in RunFolder(run.run).records()}
    for record in RunFolder(run.run).evaluations():
        assert record["version"] == versions[record["step"]] and record["sets"]["held"]["problems"] == 6
        assert sum(record["sets"]["held"]["verdicts"].values()) == 12
    run.end()
