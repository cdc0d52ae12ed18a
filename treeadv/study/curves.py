"""Draws the curves of a study against generated tokens.

A curve is the mean over seeds with a band of one standard deviation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

import numpy as np

from treeadv.report.chart import number
from treeadv.report.markup import add, element
from treeadv.study.analysis import Result, curve

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 560.0, 300.0, 46.0, 130.0, 12.0, 34.0
_POINTS = 40  # number of points of an averaged curve
COLOURS = ("#2a6fd6", "#c76a0e", "#16877a", "#9a4cc0", "#b23a58", "#74726a", "#5a8f00", "#0b7fab", "#8a5a00", "#d63384")
STYLE = """
svg.band { width: 100%; max-width: 760px; height: auto; font: 11px system-ui, sans-serif; }
svg.band text { fill: var(--ink); } svg.band .grid { stroke: var(--line); }
svg.band .line { fill: none; stroke-width: 2; }
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """The mean and the standard deviation over seeds at `x` generated tokens."""

    name: str
    x: list[float]
    mean: list[float]
    std: list[float]


def band(name: str, cells: Sequence[Result], key: str) -> Band | None:
    """Return the band of the finished cells of a row, up to the tokens that all of them reached.

    Returns None if the row has no band."""
    curves = [curve(c, key) for c in cells if c["status"] == "done"]
    if not curves:
        return None
    x = np.linspace(0.0, min(tokens[-1] for tokens, _ in curves), _POINTS)
    values = np.array([np.interp(x, tokens, y) for tokens, y in curves])
    std = values.std(0, ddof=1) if len(values) > 1 else np.zeros(_POINTS)
    return Band(name=name, x=x.tolist(), mean=values.mean(0).tolist(), std=std.tolist())


def draw(bands: Sequence[Band], unit: str) -> Element:
    """Draw several bands in one SVG. The name of each band is beside it."""
    svg = element("svg", viewBox=f"0 0 {_WIDTH} {_HEIGHT}", class_="band", role="img", aria_label=unit)
    top_x = max(b.x[-1] for b in bands)
    low = min(m - s for b in bands for m, s in zip(b.mean, b.std, strict=True))
    high = max(m + s for b in bands for m, s in zip(b.mean, b.std, strict=True))
    room = (high - low) or 1.0

    def px(x: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * x / (top_x or 1.0)

    def py(y: float) -> float:
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (high - y) / room

    for k in range(5):
        y = low + room * k / 4
        add(svg, "line", class_="grid", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=py(y), y2=py(y))
        add(svg, "text", number(y), x=4.0, y=py(y) + 4)
        add(svg, "text", number(top_x * k / 4), x=px(top_x * k / 4) - 10, y=_HEIGHT - 18)
    add(svg, "text", f"generated tokens; {unit}", x=_LEFT, y=_HEIGHT - 3)
    ends = sorted(range(len(bands)), key=lambda i: -bands[i].mean[-1])
    for i, b in enumerate(bands):
        colour = COLOURS[i % len(COLOURS)]
        rows = list(zip(b.x, b.mean, b.std, strict=True))
        upper = " ".join(f"{px(x):.1f},{py(m + s):.1f}" for x, m, s in rows)
        lower = " ".join(f"{px(x):.1f},{py(m - s):.1f}" for x, m, s in reversed(rows))
        add(svg, "polygon", points=f"{upper} {lower}", fill=colour, opacity=".13")
        add(
            svg,
            "polyline",
            class_="line",
            stroke=colour,
            points=" ".join(f"{px(x):.1f},{py(m):.1f}" for x, m, _ in rows),
        )
        y = _TOP + 14.0 * ends.index(i) + 8
        add(svg, "rect", x=_WIDTH - _RIGHT + 10, y=y - 9, width=10.0, height=10.0, fill=colour)
        add(svg, "text", f"{b.name} {b.mean[-1]:.3f}", x=_WIDTH - _RIGHT + 24, y=y)
    return svg
