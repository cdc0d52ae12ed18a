"""Draws curves over the steps of a run as inline SVG. The curves share one scale, and the last value of each is
text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from treeadv.report.markup import add, element

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 360.0, 168.0, 46.0, 54.0, 10.0, 22.0
_LABEL = 12.0  # pixels between two lines of labels
SERIES_COLOURS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One curve. A step without a value (None, NaN) makes a gap."""

    label: str
    values: Sequence[float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A chart of curves. With `from_zero` the scale includes zero, for values whose size matters."""

    title: str
    unit: str
    series: Sequence[Series]
    from_zero: bool = True


def draw(chart: Chart, steps: Sequence[int]) -> Element:
    """Return a <figure> with the curves, a title, a key (for several curves) and a text alternative."""
    figure = element("figure", class_="card", style="margin:0")
    caption = add(figure, "figcaption")
    add(caption, "h3", chart.title)
    add(caption, "span", chart.unit, class_="soft")
    if len(chart.series) > 1:
        key = add(figure, "div", class_="key")
        for i, s in enumerate(chart.series):
            add(add(key, "span"), "i", class_=f"k{i}").tail = s.label
    ticks = _ticks([v for s in chart.series for v in _finite(s.values)], chart.from_zero)
    root = add(figure, "svg", viewBox=f"0 0 {_WIDTH:.0f} {_HEIGHT:.0f}", class_="chart", role="img")
    add(root, "title", f"{chart.title}: " + "; ".join(_story(s) for s in chart.series))
    for tick in ticks:
        add(root, "path", class_="grid", d=f"M{_LEFT} {_y(tick, ticks):.1f}H{_WIDTH - _RIGHT}")
        add(root, "text", number(tick), x=_LEFT - 6, y=_y(tick, ticks) + 4, text_anchor="end")
    for step, anchor in ((steps[0], "start"), (steps[-1], "end")):
        if anchor == "start" or step != steps[0]:
            add(root, "text", f"step {step}", x=_x(step, steps), y=_HEIGHT - 6, text_anchor=anchor)
    for i, s in enumerate(chart.series):
        add(root, "path", class_=f"line s{i}", d=_path(s, steps, ticks))
    _label_ends(root, chart, steps, ticks)
    for i, s in enumerate(chart.series):
        _points(root, s, i, steps, ticks, chart)
    return figure


def _label_ends(root: Element, chart: Chart, steps: Sequence[int], ticks: Sequence[float]) -> None:
    """Write the last value of each curve beside its end. Labels that would overlap are moved apart."""
    ends = sorted((_y(v[-1], ticks), v[-1]) for s in chart.series if (v := _finite(s.values)))
    at = -math.inf
    for n, (y, value) in enumerate(ends):
        lowest = _HEIGHT - _LABEL * (len(ends) - 1 - n) - 2  # leaves room for the labels below
        at = min(max(at + _LABEL, y + 4), lowest)
        add(root, "text", number(value), class_="last", x=_WIDTH - _RIGHT + 6, y=at)


def _points(root: Element, s: Series, i: int, steps: Sequence[int], ticks: Sequence[float], chart: Chart) -> None:
    single = len(_finite(s.values)) == 1  # a single value has no line, so its dot is always visible
    for step, value in zip(steps, s.values, strict=True):
        if value is not None and math.isfinite(value):
            point = add(root, "g")
            label = f"{s.label} " if len(chart.series) > 1 else ""
            add(point, "title", f"step {step}: {label}{number(value)} {chart.unit}")
            x, y = _x(step, steps), _y(value, ticks)
            add(point, "circle", class_="hit", cx=x, cy=y, r=8.0)
            add(point, "circle", class_=f"k{i}" if single else f"dot k{i}", cx=x, cy=y, r=3.5)


def _path(s: Series, steps: Sequence[int], ticks: Sequence[float]) -> str:
    out, pen = [], "M"
    for step, value in zip(steps, s.values, strict=True):
        if value is not None and math.isfinite(value):
            out.append(f"{pen}{_x(step, steps):.1f} {_y(value, ticks):.1f}")
            pen = "L"
        else:
            pen = "M"
    return "".join(out)


def _ticks(values: Sequence[float], from_zero: bool) -> list[float]:
    """Return three to six round numbers that span the values."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if from_zero:
        low, high = min(low, 0.0), max(high, 0.0)
    size = max(abs(low), abs(high))
    if size < 1e-300:  # a quarter of the smallest numbers is 0
        low = high = size = 0.0
    if high - low <= 1e-9 * size:  # all values are equal
        low, high = (low - size / 2, high + size / 2) if size else (0.0, 1.0)
    raw = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [n * step for n in range(first, last + 1)]


def _x(step: int, steps: Sequence[int]) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (step - steps[0]) / max(1, steps[-1] - steps[0])


def _y(value: float, ticks: Sequence[float]) -> float:
    return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - (value - ticks[0]) / (ticks[-1] - ticks[0]))


def _story(s: Series) -> str:
    values = _finite(s.values)
    if not values:
        return f"{s.label} has no value"
    first, last, low, high = map(number, (values[0], values[-1], min(values), max(values)))
    return f"{s.label} from {first} to {last}, between {low} and {high}"


def _finite(values: Sequence[float | None]) -> list[float]:
    return [v for v in values if v is not None and math.isfinite(v)]


def number(value: float) -> str:
    """Format a number with at most three significant digits: 0.034, 12.5, 1,480, 2.1M, 3e-05."""
    if value == 0:
        return "0"
    size = abs(value)
    if size < 1e-3:
        return f"{value:.1e}".replace(".0e", "e")
    if size >= 1e6:
        return f"{value / 1e6:.3g}M"
    if size >= 1e4:
        return f"{value / 1e3:.3g}k"
    return f"{value:,.0f}" if size >= 100 else f"{value:.3g}"
