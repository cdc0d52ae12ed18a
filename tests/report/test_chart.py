"""Tests that a chart draws its curves within the scale, leaves gaps for missing records, and labels the last values."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from xml.etree.ElementTree import Element

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treeadv.report.chart import Chart, Series, draw, number

values = st.lists(st.one_of(st.none(), st.just(math.nan), st.floats(-1e9, 1e9)), min_size=1, max_size=30)


def path(figure: Element, curve: int) -> str:
    found = figure.find(f".//path[@class='line s{curve}']")
    assert found is not None
    return found.get("d", "")


def points(d: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", d)]


@given(values, st.booleans())
def test_higher_values_are_drawn_higher_and_all_inside(ys: list[float | None], from_zero: bool) -> None:
    steps = list(range(10, 10 + len(ys)))
    figure = draw(Chart(title="t", unit="u", series=[Series(label="a", values=ys)], from_zero=from_zero), steps)
    known = [y for y in ys if y is not None and math.isfinite(y)]
    at = points(path(figure, 0))
    assert len(at) == len(known)
    assert all(46 <= x <= 306 and 10 <= y <= 146 for x, y in at)
    assert [x for x, _ in at] == sorted(x for x, _ in at)
    for (_, y1), v1, (_, y2), v2 in zip(at, known, at[1:], known[1:], strict=False):
        assert y1 >= y2 if v1 < v2 else y1 <= y2


def test_missing_step_is_a_gap_in_the_curve() -> None:
    figure = draw(Chart(title="t", unit="u", series=[Series(label="a", values=[1.0, 2.0, None, 3.0])]), [1, 2, 3, 4])
    assert re.sub(r"[-\d. ]", "", path(figure, 0)) == "MLM"


def test_one_value_shows_as_a_dot() -> None:
    figure = draw(Chart(title="t", unit="u", series=[Series(label="a", values=[None, 1.0])]), [1, 2])
    assert [c.get("class") for c in figure.iter("circle")] == ["hit", "k0"]


def test_several_curves_have_a_key_and_separate_last_values() -> None:
    figure = draw(
        Chart(
            title="t",
            unit="u",
            series=[Series(label="mean", values=[1.0, 2.0]), Series(label="max", values=[1.0, 2.01])],
        ),
        [1, 2],
    )
    keys = [mark for span in figure.iter("span") if (mark := span.find("i")) is not None]
    assert [(mark.get("class"), mark.tail) for mark in keys] == [("k0", "mean"), ("k1", "max")]
    last = [e for e in figure.iter("text") if e.get("class") == "last"]
    assert {e.text for e in last} == {"2", "2.01"}
    assert abs(float(last[0].get("y", 0)) - float(last[1].get("y", 0))) >= 12


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6))
def test_last_values_stay_apart_and_inside_the_chart(ends: list[float]) -> None:
    figure = draw(
        Chart(title="t", unit="u", series=[Series(label=str(i), values=[0.5, v]) for i, v in enumerate(ends)]), [1, 2]
    )
    at = [float(e.get("y", 0)) for e in figure.iter("text") if e.get("class") == "last"]
    assert all(b - a >= 11.9 for a, b in pairwise(at))
    assert max(at) <= 168


def test_text_alternative_describes_each_curve() -> None:
    title = draw(
        Chart(title="Reward", unit="u", series=[Series(label="reward", values=[0.2, 0.1, 0.5])]), [1, 2, 3]
    ).find("svg/title")
    assert title is not None and title.text == "Reward: reward from 0.2 to 0.5, between 0.1 and 0.5"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.0341, "0.0341"),
        (12.49, "12.5"),
        (1480, "1,480"),
        (41_233, "41.2k"),
        (2.1e6, "2.1M"),
        (2e-5, "2e-05"),
        (-0.25, "-0.25"),
    ],
)
def test_number_is_shown_in_short_form(value: float, text: str) -> None:
    assert number(value) == text
