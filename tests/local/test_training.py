"""Tests training in one process: its run folder, and bitwise equal weights after interruptions."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from actors.cli import main
from tests.injection import flip
from tests.running import recipe
from treeadv.errors import BadForest
from treeadv.forest import Forest
from treeadv.learning.gradient import GradientPass, Update
from treeadv.learning.objective import Sums
from treeadv.learning.report import Phases
from treeadv.learning.trainer import Trainer
from treeadv.local.serving import Serving
from treeadv.replay.audit import audit
from treeadv.storage.record_fields import faults
from treeadv.storage.run_folder import RunFolder
from treeadv.view.sources import open_source

STEPS = 5


def local_recipe(tmp_path: Path, model: Path, name: str, *overrides: str) -> Path:
    (tmp_path / f"recipe-{name}").mkdir()
    path = recipe(
        tmp_path / f"recipe-{name}", model, generator={"count": 1, "forests": 2, "threads": 1},
        run={"root": str(tmp_path), "name": name, "steps": STEPS, "checkpoint_every": 2, "keep_checkpoints": 9},
    )  # fmt: skip
    tree = yaml.safe_load(path.read_text())
    for override in overrides:
        section, _, rest = override.partition(".")
        key, _, value = rest.partition("=")
        tree.setdefault(section, {})[key] = yaml.safe_load(value)
    path.write_text(yaml.safe_dump(tree))
    return path


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "actors.cli", "train", "--local", *map(str, arguments)]


def train(*arguments: object) -> int:
    return main(["train", "--local", *map(str, arguments)])


def weights(run: Path) -> str:
    """Return a digest of the weights at the end of a run."""
    files = sorted((run / "checkpoints" / f"step-{STEPS}").glob("*.safetensors"))
    assert files
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()


def records(run: Path) -> list[dict]:
    """Return the records of metrics.jsonl without times and without engine totals, because a resumed run draws some
    tokens again."""
    timed = ("elapsed_s", "seconds", "decode_tokens_per_s", "generator_busy_s", "prefix_reuse", "mfu")
    totals = ("tokens_generated", "prompt_tokens", "cached_tokens", "forests", "admitted", "dropped", "dropped_tokens")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in (*timed, *totals)} for line in lines]


@pytest.fixture(scope="module")
def finished(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tmp_path = tmp_path_factory.mktemp("local")
    assert train("--config", local_recipe(tmp_path, tiny_model, "whole", "learner.keep_log_probs=true")) == 0
    return tmp_path / "whole"


def test_run_folder_has_the_files_of_a_run_with_ray(finished: Path) -> None:
    names = {p.name for p in finished.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "summary.json", "report.html", "replay", "checkpoints"} <= names
    assert [r["step"] for r in records(finished)] == list(range(1, STEPS + 1))
    result = audit(str(finished))
    assert result.sound, result.table()
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["forests"]["trained"] == 3 * STEPS
    assert {r["staleness_max"] for r in records(finished)} == {0}
    assert [fault for r in RunFolder(finished).records() for fault in faults(r)] == []


def test_kept_log_probs_give_the_mismatch_of_the_records(finished: Path) -> None:
    """The record of a step has KL(engine || learner) over the trained tokens, estimated by exp(d) - 1 - d."""
    source = open_source(finished)
    rows = source.rows()[0]
    for record in records(finished):
        mismatch = []
        for row in rows:
            if row.step == record["step"] and (learner := source.learner_log_probs(row.key)) is not None:
                forest = source.forest(row.key)
                assert np.isfinite(learner).all() and len(learner) == forest.tokens
                mismatch.append(learner.astype(float) - forest.logprob)
        assert len(mismatch) == 3 - record["forests_without_gradient"]
        d = np.concatenate(mismatch or [np.zeros(1)])
        assert np.mean(np.exp(d) - 1 - d) == pytest.approx(record["mismatch_kl"], rel=1e-2, abs=1e-9)


def test_batch_without_a_finite_update_is_replaced(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of the second batch is NaN. Its forests are dropped, and the run takes all its steps with other
    forests."""
    accumulate, calls = GradientPass.accumulate, []

    def second_is_not_finite(self: GradientPass, update: Update, clock: Phases) -> Sums:
        sums = accumulate(self, update, clock)
        calls.append(update)
        return dataclasses.replace(sums, loss=math.nan) if len(calls) == 2 else sums

    monkeypatch.setattr(GradientPass, "accumulate", second_is_not_finite)
    assert train("--config", local_recipe(tmp_path, tiny_model, "skipped")) == 0
    run = tmp_path / "skipped"
    result = audit(str(run))
    assert result.sound and result.dropped == {"not_finite": 3}, result.table()
    assert [r["step"] for r in records(run)] == list(range(1, STEPS + 1))
    assert json.loads((run / "summary.json").read_text())["forests"]["trained"] == 3 * STEPS
    assert len(list(run.glob("nonfinite-version-*.arrow"))) == 1


def test_run_that_is_never_finite_ends_and_resumes_on_others(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One batch is replaced, and the next batch ends the run. Both are dropped, so the resumed run does not lease
    them."""
    accumulate = GradientPass.accumulate

    def never_finite(self: GradientPass, update: Update, clock: Phases) -> Sums:
        return dataclasses.replace(accumulate(self, update, clock), loss=math.nan)

    options = "learner.max_nonfinite=1", "learner.kl=0.1"  # with a KL term every batch is an update
    with monkeypatch.context() as broken:
        broken.setattr(GradientPass, "accumulate", never_finite)
        assert train("--config", local_recipe(tmp_path, tiny_model, "never", *options)) == 2
    assert "the loss of an update is not finite" in capsys.readouterr().err.strip().splitlines()[-1]
    run = tmp_path / "never"
    result = audit(str(run))
    assert result.sound and result.dropped == {"not_finite": 6}, result.table()
    assert train("--resume", run) == 0
    result = audit(str(run))
    assert result.sound and result.dropped == {"not_finite": 6}, result.table()
    assert result.rows["trained"]["forests"] == 3 * STEPS


def test_refused_forest_ends_the_run_and_is_not_leased_again(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(self: Trainer, forest: Forest) -> None:
        raise BadForest(forest.forest_id, "token 99 is outside of the model's vocabulary")

    with monkeypatch.context() as broken:
        broken.setattr(Trainer, "_check_forest", refuse)
        assert train("--config", local_recipe(tmp_path, tiny_model, "refused")) == 2
    assert "token 99 is outside" in capsys.readouterr().err.strip().splitlines()[-1]
    assert audit(str(tmp_path / "refused")).dropped == {"invalid": 3}
    assert train("--resume", tmp_path / "refused") == 0
    result = audit(str(tmp_path / "refused"))
    assert result.sound and result.dropped == {"invalid": 3}, result.table()


def poison(monkeypatch: pytest.MonkeyPatch, draw: int) -> list[int]:
    """Make the loss of each first attempt at a draw NaN. Returns the mini-batches taken, which the caller may limit."""
    accumulate, left = GradientPass.accumulate, [sys.maxsize]

    def poisoned(self: GradientPass, update: Update, clock: Phases) -> Sums:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        sums = accumulate(self, update, clock)
        bad = any(f.forest_id.endswith(f"-{draw:06d}-0") for f in update.forests)
        return dataclasses.replace(sums, loss=math.nan) if bad else sums

    monkeypatch.setattr(GradientPass, "accumulate", poisoned)
    return left


@pytest.mark.parametrize("breaks", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_skipped_update_drops_its_forests_and_trains_the_others(
    breaks: bool, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of three mini-batches of the third step is not finite. A run that stops in the fourth step and resumes from
    the second step repeats the third step with the same forests."""
    left = poison(monkeypatch, draw=7)
    # With a KL term every forest is packed, so each mini-batch is an update
    options = "learner.updates_per_batch=3", "learner.kl=0.1"
    path = local_recipe(tmp_path, tiny_model, "skipped", *options)
    if breaks:
        left[0] = 11
        assert train("--config", path) != 0
        left[0] = sys.maxsize
        assert train("--resume", tmp_path / "skipped") == 0
    else:
        assert train("--config", path) == 0
    run = tmp_path / "skipped"
    result = audit(str(run))
    assert result.sound and result.dropped == {"not_finite": 1}, result.table()
    assert result.rows["trained"]["forests"] == 3 * STEPS - 1
    assert [(r["step"], r["version"], r["nonfinite_updates"]) for r in records(run)] == [
        (1, 3, 0), (2, 6, 0), (3, 8, 1), (4, 11, 0), (5, 14, 0)
    ]  # fmt: skip
    (named,) = (r["nonfinite_forests"] for r in records(run) if r["nonfinite_updates"])
    assert len(named) == 1 and named[0].endswith("-000007-0")
    if breaks:
        assert train("--config", local_recipe(tmp_path, tiny_model, "whole", *options)) == 0
        assert weights(run) == weights(tmp_path / "whole") and records(run) == records(tmp_path / "whole")


def test_two_runs_with_one_seed_end_in_equal_weights(finished: Path, tiny_model: Path, tmp_path: Path) -> None:
    assert train("--config", local_recipe(tmp_path, tiny_model, "again")) == 0
    assert weights(tmp_path / "again") == weights(finished)
    assert records(tmp_path / "again") == records(finished)
    assert train("--config", local_recipe(tmp_path, tiny_model, "other", "run.seed=1")) == 0
    assert weights(tmp_path / "other") != weights(finished)


@pytest.mark.parametrize(
    ("after", "options"),
    [
        (3, ()),
        pytest.param(1, (), marks=pytest.mark.slow),
        pytest.param(3, ("local.staleness=2", "generator.dtype=bfloat16"), marks=pytest.mark.slow),
        (4, ("local.staleness=1", "sampling.tau_quantile=0.9", "sampling.tau_min_tokens=10", "sampling.tau_window=4")),
    ],
)
def test_killed_run_resumes_to_equal_weights(
    after: int, options: tuple[str, ...], finished: Path, tiny_model: Path, tmp_path: Path
) -> None:
    whole = finished
    if options:
        assert train("--config", local_recipe(tmp_path, tiny_model, "whole", *options)) == 0
        whole = tmp_path / "whole"
    process = subprocess.Popen(command("--config", local_recipe(tmp_path, tiny_model, "killed", *options)))
    path = tmp_path / "killed" / "metrics.jsonl"
    while not (path.is_file() and len(path.read_text().splitlines()) >= after):
        assert process.poll() is None
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert train("--resume", tmp_path / "killed") == 0
    assert weights(tmp_path / "killed") == weights(whole)
    assert records(tmp_path / "killed") == records(whole)
    result = audit(str(tmp_path / "killed"))
    assert result.sound, result.table()


@pytest.mark.parametrize("damaged", [(5,), pytest.param((5, 4), marks=pytest.mark.slow)])
def test_run_with_damaged_checkpoints_resumes_to_equal_weights(
    damaged: tuple[int, ...], finished: Path, tmp_path: Path, caplog
) -> None:
    run = shutil.copytree(finished, tmp_path / "copy")
    for step in damaged:
        flip(max((run / "checkpoints" / f"step-{step}").rglob("*.safetensors"), key=lambda f: f.stat().st_size), 900)
    assert train("--resume", run) == 0
    assert [f"step-{step} is ignored" in caplog.text for step in (5, 4, 2)] == [step in damaged for step in (5, 4, 2)]
    assert weights(run) == weights(finished) and records(run) == records(finished)
    assert audit(str(run)).sound


def test_run_without_an_undamaged_checkpoint_names_the_remedy(finished: Path, tmp_path: Path, capsys) -> None:
    run = shutil.copytree(finished, tmp_path / "copy")
    before = records(run)
    shutil.move(run / "checkpoints", tmp_path / "backup")
    assert train("--resume", run) == 2
    shown = capsys.readouterr().err
    assert "Restore a checkpoint of these steps from a backup, or start a new run" in shown and shown.count("\n") == 1
    assert records(run) == before
    shutil.move(tmp_path / "backup", run / "checkpoints")
    assert train("--resume", run, "run.steps=6") == 0
    assert [r["step"] for r in records(run)] == [1, 2, 3, 4, 5, 6]


def test_staleness_serves_older_weights(tiny_model: Path, tmp_path: Path) -> None:
    assert train("--config", local_recipe(tmp_path, tiny_model, "stale", "local.staleness=2")) == 0
    assert [r["staleness_max"] for r in records(tmp_path / "stale")] == [0, 1, 2, 2, 2]


def test_interrupt_ends_after_the_step_with_a_checkpoint(tiny_model: Path, tmp_path: Path) -> None:
    path = local_recipe(tmp_path, tiny_model, "stopped", "run.steps=500", "run.checkpoint_every=400")
    process = subprocess.Popen(command("--config", path), stdout=subprocess.PIPE, text=True)
    metrics = tmp_path / "stopped" / "metrics.jsonl"
    while not (metrics.is_file() and metrics.read_text()):
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "go on with: treeadv train --local --resume" in out
    steps = len(metrics.read_text().splitlines())
    assert 1 <= steps < 500
    assert [p.name for p in (tmp_path / "stopped" / "checkpoints").iterdir()] == [f"step-{steps}"]


@pytest.mark.parametrize("moment", ["hand_over", "keep_weights"])
def test_interrupt_leaves_a_checkpoint_of_the_last_step(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """The signal arrives after step 2, before or after the place that decides about a checkpoint."""
    original, calls = getattr(Serving, moment), []

    def interrupted(serving: Serving) -> object:
        calls.append(moment)
        if len(calls) == 3:  # hand_over also runs before the first step
            signal.raise_signal(signal.SIGINT)
        return original(serving)

    monkeypatch.setattr(Serving, moment, interrupted)
    path = local_recipe(tmp_path, tiny_model, "stopped", "run.steps=50", "run.checkpoint_every=40")
    assert train("--config", path) == 0
    last = records(tmp_path / "stopped")[-1]["step"]
    assert last < 50
    assert [p.name for p in (tmp_path / "stopped" / "checkpoints").iterdir()] == [f"step-{last}"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("generator.count=2", "generator.count=2: --local has one generator"),
        ("learner.count=2", "learner.count=2: --local has one learner"),
        ("local.staleness=3", "local.staleness=3: queue.max_staleness=2 would drop every forest"),
    ],
)
def test_option_that_needs_ray_is_refused_in_one_line(
    override: str, message: str, tiny_model: Path, tmp_path: Path, capsys
) -> None:
    assert train("--config", local_recipe(tmp_path, tiny_model, "bad"), override) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("treeadv: error: ") and shown.count("\n") == 1 and message in shown
    assert not (tmp_path / "bad" / "config.yaml").exists()


def test_unusable_verifier_is_refused_before_the_run_starts(tiny_model: Path, tmp_path: Path, capsys) -> None:
    assert train("--config", local_recipe(tmp_path, tiny_model, "broken", "task.verifier=tests.nowhere:judge")) == 2
    assert "verifier 'tests.nowhere:judge': ModuleNotFoundError" in capsys.readouterr().err
    assert not (tmp_path / "broken").exists()


def test_verifier_that_fails_later_ends_the_run_with_exit_1(tiny_model: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "calls").write_text("")
    name = "task.verifier=tests.failing:fails_after_the_first_call"
    recipe = local_recipe(tmp_path, tiny_model, "failing", name, "reward.workers=1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TREEADV_VERIFIER_CALLS", str(tmp_path / "calls"))
        assert train("--config", recipe) == 1
    shown = capsys.readouterr().err
    assert "the verifier failed on all of the first" in shown and "RuntimeError: broken" in shown
    assert "tests/failing.py:" in shown and "treeadv train --local --resume" in shown
