"""Draws when the learner of a run waited, computed, published and wrote checkpoints, and how busy the generators were.

The records of the steps hold the seconds of each phase. The phases of a record follow one another in the order of the
loop, so each begins where the one before it ends."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from treeadv.jsonl import JsonObject
from treeadv.report.markup import add, element

_WIDTH, _LEFT, _ROW, _TOP = 760.0, 84.0, 26.0, 8.0
# Kinds of work: label, number of the colour, phases of a record. The order is that of the driver's loop: a record
# follows the publication, so the checkpoint of a step counts in the next record. A local run publishes first.
_KINDS = (
    ("checkpoint", 3, ("checkpoint",)),
    ("waits", 1, ("wait",)),
    ("step", 0, ("pack", "log_probs", "forward_backward", "optimizer")),
    ("publishes", 2, ("publish",)),
)
_LOCAL_ORDER = (0, 3, 1, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """What the learner did from `begin` to `end`, in seconds since the start of the run."""

    label: str
    colour: int
    begin: float
    end: float


def bars(record: JsonObject, begin: float, local: bool) -> Iterator[Bar]:
    """Yield the bars of one record, whose time starts at `begin`. The time after the last bar belongs to no phase."""
    order = [_KINDS[i] for i in _LOCAL_ORDER] if local else _KINDS
    for label, colour, phases in order:
        seconds = sum(record.get("seconds", {}).get(name, 0.0) for name in phases)
        if seconds:
            yield Bar(label=label, colour=colour, begin=begin, end=begin + seconds)
            begin += seconds


def draw(records: Sequence[JsonObject], generators: int, local: bool) -> Element | None:
    """Return a <figure> of the steps after the first of `records`, which must follow one another.

    The second row shows the share of a step in which the `generators` engines computed. Returns None for fewer than two
    records, because the start of the first is not known."""
    spans = [(r, before["elapsed_s"]) for before, r in itertools.pairwise(records)]
    spans = [(r, begin) for r, begin in spans if r["elapsed_s"] > begin]
    if not spans:
        return None
    first, last = spans[0][1], spans[-1][0]["elapsed_s"]
    figure = element("figure", class_="card", style="margin:0")
    caption = add(figure, "figcaption")
    add(caption, "h3", "Who did what when")
    add(caption, "span", f"steps {spans[0][0]['step']} to {spans[-1][0]['step']}", class_="soft")
    key = add(figure, "div", class_="key")
    for label, colour, _ in _KINDS:
        add(add(key, "span"), "i", class_=f"k{colour}").tail = f"learner {label}"
    root = add(figure, "svg", viewBox=f"0 0 {_WIDTH:.0f} {2 * _ROW + _TOP + 24:.0f}", class_="chart", role="img")
    busy = sum(r.get("generator_busy_s", 0.0) for r, _ in spans) / (last - first) / generators
    add(root, "title", f"Who did what when; the engines computed {busy:.0%} of the time")

    def x(seconds: float) -> float:
        return _LEFT + (seconds - first) / (last - first) * (_WIDTH - _LEFT - 4)

    for i, name in enumerate(("learner", "generators")):
        add(root, "text", name, x=_LEFT - 6, y=_TOP + i * _ROW + 15, text_anchor="end")
    for r, begin in spans:
        for bar in bars(r, begin, local):
            _box(root, x(bar.begin), x(bar.end), 0, bar.colour, f"step {r['step']}: {bar.label} "
                 f"{bar.end - bar.begin:.2f} s")  # fmt: skip
        share = min(1.0, r.get("generator_busy_s", 0.0) / generators / (r["elapsed_s"] - begin))
        title = f"step {r['step']}: the engines computed {share:.0%} of the time"
        _box(root, x(begin), x(r["elapsed_s"]), 1, 4, title, height=share)
    for seconds, anchor in ((first, "start"), (last, "end")):
        add(root, "text", f"{seconds:.0f} s", x=x(seconds), y=_TOP + 2 * _ROW + 14, text_anchor=anchor)
    return figure


def _box(root: Element, left: float, right: float, row: int, colour: int, title: str, height: float = 1.0) -> None:
    """Draw one box with a text that a reader sees on hovering. Boxes with a height below 1 stand on the row's line."""
    tall = height * (_ROW - 6)
    box = add(root, "rect", x=left, y=_TOP + row * _ROW + (_ROW - 6) - tall, width=max(0.4, right - left - 0.4),
              height=tall, class_=f"k{colour}")  # fmt: skip
    add(box, "title", title)
