"""Compares the analysis of a study with independent references, on synthetic results."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tests.study.results import SEEDS, TREE, done, failed, study
from treeadv.study.analysis import compare, holm, metric, summarise, tokens_to
from treeadv.study.report import claim_cells, gaps, write_reports
from treeadv.study.running import status
from treeadv.study.spec import Study


def cells(s: Study, **accuracy: list[float | None]) -> dict[tuple[str, int], dict[str, Any]]:
    """Return results of every row, with one test accuracy for each seed. None is a failed cell."""
    return {
        (row, seed): failed(row, seed) if x is None else done(row, seed, x)
        for row, values in accuracy.items()
        for seed, x in zip(SEEDS, values, strict=True)
    }


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_the_step_down_procedure(p: list[float]) -> None:
    """The reference is the definition: reject in order of p while p(k) <= alpha / (m - k)."""
    adjusted = holm(p)
    for alpha in np.linspace(0.001, 1.0, 23):
        rejected: set[int] = set()
        for k, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
            if p[i] > alpha / (len(p) - k):
                break
            rejected.add(i)
        for i in range(len(p)):
            if abs(adjusted[i] - alpha) > 1e-9:
                assert (adjusted[i] <= alpha) == (i in rejected)


def test_holm_counts_a_comparison_without_a_p_value() -> None:
    assert holm([0.01, math.nan])[0] == pytest.approx(0.02)
    assert math.isnan(holm([0.01, math.nan])[1])


@pytest.mark.parametrize(
    ("tree", "flat", "verdict"),
    [
        ([0.60, 0.62, 0.64, 0.66, 0.61], [0.40, 0.43, 0.42, 0.45, 0.40], "supported"),
        ([0.40, 0.43, 0.42, 0.45, 0.40], [0.60, 0.62, 0.64, 0.66, 0.61], "refuted"),
        ([0.60, 0.40, 0.64, 0.41, 0.61], [0.50, 0.52, 0.49, 0.55, 0.51], "undecided"),
    ],
)
def test_verdict_follows_direction_and_corrected_p(tree: list[float], flat: list[float], verdict: str) -> None:
    s = study()
    (comparison, _) = compare(s, cells(s, grpo=flat, treeadv=tree))
    assert comparison.verdict == verdict
    assert comparison.p_t == pytest.approx(stats.ttest_rel(tree, flat).pvalue)
    assert comparison.p_wilcoxon == pytest.approx(stats.wilcoxon(np.subtract(tree, flat)).pvalue)
    assert comparison.interval[0] <= comparison.difference <= comparison.interval[1]


def test_fewer_tokens_are_better() -> None:
    s = study()
    results = cells(s, grpo=[0.5] * 5, treeadv=[0.5] * 5)
    for i, seed in enumerate(SEEDS):
        results["treeadv", seed]["series"]["tokens_generated"] = [700.0 + i]
    assert compare(s, results)[1].verdict == "supported"


def test_pair_with_a_failed_cell_is_left_out_and_shown() -> None:
    s = study()
    results = cells(s, grpo=[0.4, None, 0.41, 0.43, 0.42], treeadv=[0.6, 0.61, 0.64, 0.62, 0.63])
    comparison = compare(s, results)[0]
    assert comparison.pairs == 4 and comparison.difference == pytest.approx(np.mean([0.2, 0.23, 0.19, 0.21]))
    assert "4 of 5" in claim_cells(comparison)
    assert gaps(results) == ["grpo, seed 2: failed: the loss is not finite"]
    assert [(r.done, r.failed, r.missing) for r in summarise(s, results)] == [(4, 1, 0), (5, 0, 0)]


def test_one_pair_decides_nothing() -> None:
    s = study()
    results = cells(s, grpo=[0.4, None, None, None, None], treeadv=[0.9, 0.9, 0.9, 0.9, 0.9])
    assert compare(s, results)[0].verdict == "undecided"


def test_tokens_to_target_are_interpolated_or_censored() -> None:
    result = done("grpo", 1, 0.5, looks=[(0, 0.3), (1000, 0.4), (2000, 0.8)])
    assert tokens_to(result, 0.6) == pytest.approx(1500)
    assert tokens_to(result, 0.3) == 0
    assert math.isinf(tokens_to(result, 0.9))
    assert metric(study(), result, "dev_accuracy_at_tokens", 500) == pytest.approx(0.35)


def test_report_is_one_page_without_outside_parts(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(TREE))
    s = study()
    results = cells(s, grpo=[0.4, None, 0.41, 0.43, 0.42], treeadv=[0.6, 0.61, 0.64, 0.62, 0.63])
    for cell in s.cells:
        if (cell.row, cell.seed) != ("treeadv", 5):
            folder = tmp_path / "cells" / cell.folder
            folder.mkdir(parents=True)
            (folder / "cell.json").write_text(json.dumps(results[cell.row, cell.seed]))
    assert {status(tmp_path, c) for c in s.cells} == {"done", "failed", "missing"}
    html, markdown, every, frozen = (p.read_text() for p in write_reports(tmp_path, tmp_path / "out"))
    assert "http" not in html.replace("http://www.w3.org", "") and html.count("<svg") == 2
    for text in (html, markdown):
        assert "grpo, seed 2: failed: the loss is not finite" in text
        assert "treeadv, seed 5: missing" in text
        assert "3 of 5" in text
    assert len(json.loads(every)["cells"]) == 10 and yaml.safe_load(frozen) == TREE


def test_report_names_no_folder_of_a_machine(tmp_path: Path) -> None:
    home, s = tmp_path / "home" / "small", study()
    for cell in s.cells:
        folder = home / "cells" / cell.folder
        folder.mkdir(parents=True)
        result = done(cell.row, cell.seed, 0.5) | {"config": {"run": {"root": str(folder)}, "model": "hub/name"}}
        (folder / "cell.json").write_text(json.dumps(result))
    (home / "study.yaml").write_text(yaml.safe_dump(TREE))
    session = {"command": f"treeadv study run small.yaml --dir {home} --models='{tmp_path}/m'", "date": "2026-11-28",
               "cpu": "c", "cores": 2, "python": "3.11"}  # fmt: skip
    (home / "machine.json").write_text(json.dumps([session]))
    for path in write_reports(home, tmp_path / "out"):
        assert str(tmp_path) not in path.read_text(), path
    every = json.loads((tmp_path / "out" / "cells.json").read_text())
    assert every["sessions"][0]["command"] == "treeadv study run small.yaml --dir small --models='m'"
    assert every["cells"][0]["config"] == {"run": {"root": s.cells[0].folder}, "model": "hub/name"}
