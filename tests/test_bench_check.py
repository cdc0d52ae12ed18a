"""Tests the comparison of benchmark figures with baselines."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from benchmarks.check import Check, load_checks, main
from treeadv.errors import BadInput

LINES = [{"way": "ours", "rate": 30.0}, {"way": "theirs", "rate": 20.0}, {"way": "ours", "size": 2, "rate": 9.0}]


def check(**changes: object) -> Check:
    fields = {"name": "n", "command": ["queue"], "over": {"way": "theirs"}, "figure": "rate", "better": "higher",
              "baseline": 20.0, "tolerance": 0.1}  # fmt: skip
    return Check.model_validate(fields | changes)


def test_figure_is_a_ratio_of_two_lines() -> None:
    assert check().value(LINES) == 20
    assert check(over={"size": 2}, under={"way": "theirs"}).value(LINES) == pytest.approx(0.45)


@pytest.mark.parametrize("fields", [{"way": "ours"}, {"way": "nobody"}])
def test_figure_needs_exactly_one_line(fields: dict) -> None:
    with pytest.raises(BadInput, match="but one is needed"):
        check(over=fields).value(LINES)


@pytest.mark.parametrize(
    ("better", "value", "passes"),
    [("higher", 18.0, True), ("higher", 17.9, False), ("lower", 22.0, True), ("lower", 22.1, False),
     ("higher", math.nan, False), ("lower", math.nan, False)],
)  # fmt: skip
def test_only_a_worse_figure_beyond_the_tolerance_fails(better: str, value: float, passes: bool) -> None:
    assert check(better=better).passes(value) is passes


def test_faulty_baselines_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "baselines.json"
    path.write_text('[{"name": "n", "tolerance": 2}]')
    with pytest.raises(BadInput, match=r"baselines.json: 0\."):
        load_checks(path)


def test_unknown_name_is_refused() -> None:
    with pytest.raises(BadInput, match="no check has nothing-like-it"):
        main(["nothing-like-it"])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_committed_baselines_hold() -> None:
    assert main([]) == 0
