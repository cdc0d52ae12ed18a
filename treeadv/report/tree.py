"""Draws a forest as SVG: the prompt, segments as boxes of tokens, forks as curves, and leaves with verdicts.

The thickness of a curve grows with the leaves below it. Every token, segment and leaf has a tooltip. `layout` sets text
at a fixed width, so the drawing needs no particular font.
"""

from __future__ import annotations

from xml.etree.ElementTree import Element

from rich.cells import cell_len

from treeadv.forest import Verdict
from treeadv.report.layout import CHAR, HEAD, LINE, PAD, Box, TextRun, layout
from treeadv.report.markup import add, element, svg
from treeadv.report.picture import ADVANTAGE_LEVELS, ENTROPY_LEVELS, Picture, signed
from treeadv.report.style import COLOURS, TREE

_STEM = 14.0  # pixels from a leaf's box to its verdict
_LEGEND, _LEGEND_WIDTH = 50.0, 920.0
_MARGIN = 14


def tree_svg(p: Picture) -> Element:
    """Return the drawing as an <svg> element for a page with the styles `style.COLOURS` and `style.TREE`."""
    prompt, boxes, bottom = layout(p)
    leaves = [boxes[s] for s in p.forest.leaf_segment]
    ends = (box.right + _STEM + _badge_width(p.leaf_note(leaf)) for leaf, box in enumerate(leaves))
    width, height = f"{max(_LEGEND_WIDTH, *ends) + 2:.0f}", f"{bottom + _LEGEND:.0f}"
    root = element("svg", viewBox=f"0 0 {width} {height}", width=width, height=height, class_="forest", role="img")
    add(root, "title", f"Forest {p.forest.forest_id}: {p.summary()}")
    links = add(root, "g", class_="links")
    for s, parent in enumerate(p.forest.parent):
        _draw_link(links, p, s, prompt if parent < 0 else boxes[parent], boxes[s])
    _draw_prompt(root, prompt)
    for s, box in enumerate(boxes):
        _draw_segment(root, p, s, box)
    for leaf, box in enumerate(leaves):
        _draw_leaf(root, p, leaf, box)
    _draw_legend(root, p, bottom + _LEGEND - 22)
    return root


def standalone(p: Picture) -> str:
    """Return the text of an SVG file of the drawing with a margin. The viewer's preference selects light or dark
    colours."""
    root = tree_svg(p)
    width, height = float(root.get("width", 0)) + 2 * _MARGIN, float(root.get("height", 0)) + _MARGIN
    root.attrib.update(
        width=f"{width:.0f}", height=f"{height:.0f}", viewBox=f"{-_MARGIN} {-_MARGIN} {width:.0f} {height:.0f}"
    )
    root.set("class", "forest alone")
    return svg(root, COLOURS + TREE)


def _draw_link(group: Element, p: Picture, s: int, start: Box, end: Box) -> None:
    x0, y0, x1, y1 = start.right, start.middle, end.x, end.middle
    bend = (x0 + x1) / 2
    curve = f"M{x0:.1f} {y0:.1f}C{bend:.1f} {y0:.1f} {bend:.1f} {y1:.1f} {x1:.1f} {y1:.1f}"
    thick = 1.5 + 1.5 * min(8, int(p.forest.leaf_count[s]))
    add(group, "path", d=curve, class_=_shade("l", p.advantage_level(s)), stroke_width=thick)


def _draw_prompt(root: Element, box: Box) -> None:
    group = add(root, "g", class_="prompt")
    add(group, "rect", class_="box", x=box.x, y=box.y, width=box.width, height=box.height, rx=6.0)
    add(group, "text", "PROMPT", class_="head", x=box.x + PAD, y=box.y + 14)
    for n, line in enumerate(box.lines):
        add(group, "text", line[0].text, x=box.x + PAD, y=box.baseline(n))


def _draw_segment(root: Element, p: Picture, s: int, box: Box) -> None:
    group = add(root, "g", class_="segment")
    head = add(group, "g")
    add(head, "title", f"segment {s}: {p.segment_note(s)}")
    add(head, "rect", class_="box", x=box.x, y=box.y, width=box.width, height=box.height, rx=6.0)
    corner = f"v-{HEAD - 6:.1f}a6 6 0 0 1 6 -6h{box.width - 12:.1f}a6 6 0 0 1 6 6v{HEAD - 6:.1f}z"
    add(head, "path", class_=_shade("a", p.advantage_level(s)), d=f"M{box.x:.1f} {box.y + HEAD:.1f}{corner}")
    if p.advantage is not None:
        add(head, "text", f"A {signed(p.advantage[s])}", class_="head", x=box.x + PAD, y=box.y + 14)
    if p.forest.leaf_count[s] > 1:
        add(head, "text", f"{p.forest.leaf_count[s]} leaves", class_="head end", x=box.right - PAD, y=box.y + 14)
    tokens: dict[int, Element] = {}
    for n, line in enumerate(box.lines):
        for run in line:
            if run.token is None:
                add(group, "text", run.text, class_="left-out", x=box.x + PAD, y=box.baseline(n))
                continue
            if run.token not in tokens:
                level = p.entropy_level(int(p.forest.start[s]) + run.token)
                tokens[run.token] = add(group, "g", class_=f"t e{level}")
                add(tokens[run.token], "title", p.token_note(s, run.token))
            _draw_run(tokens[run.token], run, box.x + PAD, box.baseline(n))


def _draw_run(token: Element, run: TextRun, left: float, baseline: float) -> None:
    x = left + run.column * CHAR
    add(token, "rect", x=x + 0.4, y=baseline - 13, width=run.width - 0.8, height=LINE - 1.5, rx=2.5)
    add(token, "text", run.text, x=x, y=baseline, textLength=run.width)


def _draw_leaf(root: Element, p: Picture, leaf: int, box: Box) -> None:
    verdict = Verdict(int(p.forest.verdict[leaf])).name.lower()
    detail = p.forest.detail[leaf] if p.forest.detail else ""
    group = add(root, "g", class_=f"badge {verdict}")
    add(group, "title", f"leaf {leaf}" + (f": {detail}" if detail else ""))
    x, note = box.right + _STEM, p.leaf_note(leaf)
    add(group, "path", d=f"M{box.right:.1f} {box.middle:.1f}H{x:.1f}")
    add(group, "rect", x=x, y=box.middle - 11, width=_badge_width(note), height=22.0, rx=11.0)
    add(group, "text", note, x=x + 9, y=box.middle + 4)


def _draw_legend(root: Element, p: Picture, y: float) -> None:
    group = add(root, "g", class_="legend")
    add(group, "text", "token entropy", x=4.0, y=y + 10)
    for level in range(ENTROPY_LEVELS):
        add(add(group, "g", class_=f"t e{level}"), "rect", x=90.0 + 16 * level, y=y, width=14.0, height=13.0, rx=2.5)
    add(group, "text", f"0 to {p.top_entropy:.2f} nats", x=96.0 + 16 * ENTROPY_LEVELS, y=y + 10)
    if p.advantage is None:
        return
    left = 330.0
    add(group, "text", "segment advantage", x=left, y=y + 10)
    levels = range(-ADVANTAGE_LEVELS, ADVANTAGE_LEVELS + 1)
    for n, level in enumerate(levels):
        add(group, "rect", class_=_shade("a", level), x=left + 116 + 16 * n, y=y, width=14.0, height=13.0, rx=2.5)
    ends = f"{signed(-p.top_advantage)} to {signed(p.top_advantage)}; a curve is as thick as the leaves below it"
    add(group, "text", ends, x=left + 122 + 16 * len(levels), y=y + 10)


def _badge_width(note: str) -> float:
    return cell_len(note) * 6.92 + 18


def _shade(prefix: str, level: int) -> str:
    """Return the CSS classes of an advantage level. The prefix `a` is for areas, `l` for lines."""
    return f"{prefix} {prefix}{'n' if level < 0 else 'p' if level > 0 else ''}{abs(level)}"
