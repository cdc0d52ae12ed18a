"""Draws the figures of a simulation against the number of generators, as an SVG file that stands alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element

from treeadv.report.chart import number
from treeadv.report.markup import add, element, svg

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 380.0, 220.0, 52.0, 12.0, 30.0, 34.0
COLOURS = ("#2a6fd6", "#c76a0e", "#16877a", "#9a4cc0", "#b23a58")
SHARES = {
    "learner_wait": "learner waits", "generator_idle": "generators idle", "slots_used": "no slot free",
    "queue_used": "queue works", "stale_tokens": "tokens dropped as stale",
}  # fmt: skip


def draw(lines: Sequence[dict[str, Any]]) -> str:
    """Return an SVG with the rate of training, and the shares of the time, over a logarithmic number of generators."""
    root = element("svg", viewBox=f"0 0 {2 * _WIDTH:.0f} {_HEIGHT:.0f}",
                   font_family="system-ui, sans-serif", font_size="11")  # fmt: skip
    add(root, "rect", width="100%", height="100%", fill="#fff")
    numbers = [x["generators"] for x in lines]
    rates = [x["forests_per_s"] for x in lines]
    _panel(root, 0.0, "forests trained per second", numbers, {"": rates}, max(rates))
    shares = {label: [x[key] for x in lines] for key, label in SHARES.items()}
    _panel(root, _WIDTH, "share of the time, or of the tokens", numbers, shares, 1.0)
    return svg(root, "")


def _panel(
    root: Element, left: float, title: str, numbers: Sequence[int], curves: Mapping[str, Sequence[float]], top: float
) -> None:
    low, high = math.log(numbers[0]), math.log(numbers[-1])

    def x(n: int) -> float:
        return left + _LEFT + (math.log(n) - low) / ((high - low) or 1) * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _TOP + (1 - value / (top or 1)) * (_HEIGHT - _TOP - _BOTTOM)

    add(root, "text", title, x=left + _LEFT, y=16, font_weight="600")
    _axes(root, left, numbers, top, x, y)
    for i, (label, values) in enumerate(curves.items()):
        points = " ".join(f"{x(n):.1f},{y(v):.1f}" for n, v in zip(numbers, values, strict=True))
        add(root, "polyline", points=points, fill="none", stroke=COLOURS[i], stroke_width="2")
        for n, v in zip(numbers, values, strict=True):
            dot = add(root, "circle", cx=f"{x(n):.1f}", cy=f"{y(v):.1f}", r="2.5", fill=COLOURS[i])
            add(dot, "title", f"{n} generators: {label} {number(v)}".replace("  ", " "))
        if label:
            add(root, "text", label, x=left + _LEFT + 8, y=_TOP + 12 + 13 * i, fill=COLOURS[i])


def _axes(
    root: Element, left: float, numbers: Sequence[int], top: float, x: Callable[[int], float],
    y: Callable[[float], float],
) -> None:  # fmt: skip
    for k in range(5):
        value = top * k / 4
        add(root, "line", x1=left + _LEFT, x2=left + _WIDTH - _RIGHT, y1=y(value), y2=y(value), stroke="#dedbd3")
        add(root, "text", number(value), x=left + _LEFT - 5, y=y(value) + 4, text_anchor="end")
    at = -math.inf
    for n in numbers:
        if x(n) - at >= 26:
            at = x(n)
            add(root, "text", str(n), x=at, y=_HEIGHT - _BOTTOM + 15, text_anchor="middle")
    add(root, "text", "generators", x=left + _WIDTH / 2, y=_HEIGHT - 5, text_anchor="middle")
