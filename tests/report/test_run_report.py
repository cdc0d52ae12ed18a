"""Tests that report.html needs only the files of a run, and names data that the files lack."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.report.runs import make_run, record, write_summary
from tests.strategies import build
from treeadv.errors import BadInput
from treeadv.forest import Forest
from treeadv.report.run import write_report


def forest(version: int, *rewards: float) -> Forest:
    """Return a forest of two trees with two leaves each."""
    made = build([-1, 0, 0, -1, 3, 3], [2, 3, 1, 2, 2, 2], rewards=list(rewards), version=version)
    return replace(made, gold=f"gold of version {version}")


MIXED, SAME = (1.0, 0.0, 0.0, 1.0), (0.0, 0.0, 0.0, 0.0)


def report(run: Path) -> str:
    target = write_report(run)
    assert target == run / "report.html"
    return target.read_text()


def test_report_draws_an_early_and_a_late_mixed_forest(tmp_path: Path) -> None:
    rewards = [SAME, MIXED, SAME, MIXED, MIXED, SAME]
    run = make_run(tmp_path, [forest(v, *r) for v, r in enumerate(rewards)], [record(s) for s in range(1, 7)])
    html = report(run)
    assert "Trained in step 2" in html and "gold of version 1" in html
    assert "Trained in step 5" in html and "gold of version 4" in html
    assert html.count("<article") == 2


def test_drawn_advantages_are_those_of_the_preset_of_the_run(tmp_path: Path) -> None:
    run = make_run(tmp_path, [forest(0, 1.0, 1.0, 1.0, 0.0)], [record(1)])
    config = run / "config.yaml"
    assert "A +0.58" not in report(run)  # (1 - 0.75) / 0.5 = 0.5 with the unbiased standard deviation
    assert "A +0.50" in report(run)
    config.write_text(config.read_text().replace("scale: null", "scale: std_pop"))
    assert "A +0.58" in report(run)  # 0.25 / 0.433 with the population standard deviation


def test_every_curve_ends_at_its_last_value(tmp_path: Path) -> None:
    run = make_run(tmp_path, [], [record(1), record(2, reward_mean=0.4321, grad_norm=7.77, seconds={"wait": 3.21})])
    html = report(run)
    for value in ("0.432", "7.77", "3.21"):
        assert re.search(rf'class="last"[^>]*>{value}</text>', html)


def test_keys_that_a_run_did_not_record_are_named(tmp_path: Path) -> None:
    r = {k: v for k, v in record(1).items() if k not in ("entropy_mean", "verdicts", "ess")}
    assert "Not recorded by this run: entropy_mean, ess, verdicts." in report(make_run(tmp_path, [], [r]))


def test_report_shows_the_summary_or_states_its_absence(tmp_path: Path) -> None:
    records = [record(1), record(2)]
    run = make_run(tmp_path, [], records)
    assert "no summary.json: the run has not ended" in report(run)
    write_summary(run, records)
    html = report(run)
    assert "no summary.json" not in html
    assert "800 instead of 1,040 (x 1.30, 23% shared)" in html
    assert "verified 6, wrong 10" in html


def test_report_says_why_no_forest_is_drawn(tmp_path: Path) -> None:
    assert "In every searched forest all leaves have the same reward" in report(
        make_run(tmp_path / "a", [forest(0, *SAME)], [record(1)])
    )
    run = make_run(tmp_path / "b", [forest(0, *MIXED)], [record(1)])
    shutil.rmtree(run / "replay")
    assert "no journal under replay/journal" in report(run)


def test_run_without_a_step_has_a_report(tmp_path: Path) -> None:
    assert "The run has completed no step" in report(make_run(tmp_path, [], []))


def test_report_of_a_long_run_states_that_it_is_thinned(tmp_path: Path) -> None:
    html = report(make_run(tmp_path, [], [record(s) for s in range(1, 1002)]))
    assert "The curves show 334 of 1001 steps, at even distances." in html
    assert "334 of 1001 steps (all: metrics.jsonl) as a table" in html


def test_tokens_are_text_with_a_tokenizer_and_numbers_without(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a folder without an unpacked packaged model
    made = forest(0, *MIXED)
    made = replace(made, token=np.full(made.tokens, 2 + ord("Q") - 32, np.int32))
    run = make_run(tmp_path, [made], [record(1)])
    assert "tokens are shown as numbers" in report(run)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("path: smollm2-135m-instruct", f"path: {json.dumps(str(tiny_model))}"))
    html = report(run)
    assert "tokens are shown as numbers" not in html
    assert ">Q</text>" in html


def test_report_of_a_folder_that_is_no_run_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="not a run folder"):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())
