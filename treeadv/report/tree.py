"""A forest as one SVG: prompt, segments as boxes of tokens, forks as curves as thick as the leaves below, leaves with their verdicts.

Text is set in a fixed pitch, so that the layout needs no font at hand; every token carries a tooltip.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from rich.cells import cell_len, chop_cells

from treeadv.forest import Verdict
from treeadv.report.markup import add, element, svg
from treeadv.report.picture import ADVANTAGE_LEVELS, ENTROPY_LEVELS, Picture, elided, signed
from treeadv.report.style import COLOURS, TREE

COLUMNS = 30  # characters of a line in a box
LINES = 14  # lines of a box before its middle is left out
_CHAR, _LINE, _PAD, _HEAD = 7.2, 18.0, 8.0, 20.0  # pixels: character width (12 px type), line height, margin, height of a box's head
_GAP_X, _GAP_Y, _GAP_TREE, _BADGE = 46.0, 12.0, 26.0, 190.0


@dataclass(frozen=True, slots=True)
class _Run:
    """A stretch of one token on one line of a box; `token` counts within the segment, None for the mark of what was left out."""

    text: str
    token: int | None
    column: int


@dataclass(frozen=True, slots=True)
class _Box:
    lines: list[list[_Run]]
    x: float
    y: float
    width: float

    @property
    def height(self) -> float:
        return _HEAD + len(self.lines) * _LINE + _PAD / 2

    @property
    def middle(self) -> float:
        return self.y + self.height / 2


def tree_svg(picture: Picture) -> Element:
    """The drawing, as an <svg> element for a page that carries `style.COLOURS` and `style.TREE`."""
    boxes, bottom = _layout(picture)
    prompt = _prompt_box(picture, bottom)
    leaves = [int(s) for s in picture.forest.leaf_segment]
    width = max(boxes[s].x + boxes[s].width for s in leaves) + _BADGE
    height = max(bottom, prompt.y + prompt.height) + 50
    root = element("svg", viewBox=f"0 0 {width:.0f} {height:.0f}", width=f"{width:.0f}", height=f"{height:.0f}", class_="forest", role="img")
    add(root, "title", f"Forest {picture.forest.forest_id}: {picture.summary()}")
    links = add(root, "g", class_="links")
    for s, box in enumerate(boxes):
        parent = int(picture.forest.parent[s])
        _link(links, prompt if parent < 0 else boxes[parent], box, picture, s)
    _draw_prompt(root, prompt)
    for s, box in enumerate(boxes):
        _draw_box(root, picture, s, box)
    for leaf, s in enumerate(leaves):
        _draw_badge(root, picture, leaf, boxes[s])
    _draw_legend(root, picture, height - 22)
    return root


def standalone(picture: Picture) -> str:
    """The drawing as an SVG file of its own, light or dark as its reader prefers."""
    return svg(tree_svg(picture), COLOURS + TREE)


# ---- layout ------------------------------------------------------------------------------------------------------------------------
def _layout(picture: Picture) -> tuple[list[_Box], float]:
    """A box a segment: right of its parent, and as high as the middle of its children; returns the lower end, too."""
    f = picture.forest
    lines = [_lines(pieces) for pieces in picture.pieces]
    width = [max(run.column + cell_len(run.text) for line in rows for run in line) * _CHAR + 2 * _PAD for rows in lines]
    width = [max(w, 124.0) for w in width]
    x = [0.0] * f.segments
    for s, p in enumerate(f.parent):
        x[s] = x[p] + width[p] + _GAP_X if p >= 0 else COLUMNS * _CHAR * 0.8 + 2 * _PAD + _GAP_X
    room = [_Box(rows, 0, 0, 0).height for rows in lines]
    need = list(room)  # height of each subtree
    for s in range(f.segments - 1, -1, -1):
        if kids := f.children[s]:
            need[s] = max(room[s], sum(need[c] for c in kids) + _GAP_Y * (len(kids) - 1))
    top = [0.0] * f.segments
    below = 8.0
    for s, p in enumerate(f.parent):
        if p < 0:
            top[s], below = below, below + need[s] + _GAP_TREE
        kids = f.children[s]
        at = top[s] + (need[s] - sum(need[c] for c in kids) - _GAP_Y * (len(kids) - 1)) / 2
        for c in kids:
            top[c], at = at, at + need[c] + _GAP_Y
    return [_Box(lines[s], x[s], top[s] + (need[s] - room[s]) / 2, width[s]) for s in range(f.segments)], below - _GAP_TREE


def _lines(pieces: tuple[str, ...]) -> list[list[_Run]]:
    """Break a segment's tokens into lines of at most COLUMNS cells, and leave out the middle of what is longer than LINES lines."""
    lines: list[list[_Run]] = [[]]
    column = 0
    for i, piece in enumerate(pieces):
        for n, part in enumerate(piece.split("\n")):
            if n:
                lines.append([])
                column = 0
            for text in _fitting(part, COLUMNS - column):
                if column + cell_len(text) > COLUMNS:
                    lines.append([])
                    column = 0
                lines[-1].append(_Run(text, i, column))
                column += cell_len(text)
    lines = [line for line in lines if line] or [[_Run(" ", 0, 0)]]
    head, tail = elided(len(lines), LINES)
    if not tail:
        return lines
    shown = {run.token for i in (*head, *tail) for run in lines[i]}
    mark = f"… {len(pieces) - len(shown)} tokens left out …"
    return [lines[i] for i in head] + [[_Run(mark, None, 0)]] + [lines[i] for i in tail]


def _fitting(text: str, room: int) -> Iterator[str]:
    """The text whole if a line can hold it, else cut into lines."""
    if text and cell_len(text) <= COLUMNS:
        yield text
    elif text:
        yield from chop_cells(text, COLUMNS)


def _prompt_box(picture: Picture, bottom: float) -> _Box:
    columns = int(COLUMNS * 0.8)
    text = [part for line in picture.prompt.replace("⏎", "").splitlines() for part in textwrap.wrap(line, columns)] or [" "]
    head, tail = elided(len(text), 16)
    rows = [text[i] for i in head] + (["…"] if tail else []) + [text[i] for i in tail]
    lines = [[_Run(row, None, 0)] for row in rows]
    height = _Box(lines, 0, 0, 0).height
    return _Box(lines, 0.5, max(8.0, (bottom - height) / 2), columns * _CHAR + 2 * _PAD)


# ---- drawing -----------------------------------------------------------------------------------------------------------------------
def _link(group: Element, start: _Box, end: _Box, picture: Picture, s: int) -> None:
    x0, x1 = start.x + start.width, end.x
    bend = (x0 + x1) / 2
    thick = 1.5 + 1.5 * min(8, int(picture.forest.leaf_count[s]))
    curve = f"M{x0:.1f} {start.middle:.1f}C{bend:.1f} {start.middle:.1f} {bend:.1f} {end.middle:.1f} {x1:.1f} {end.middle:.1f}"
    add(group, "path", d=curve, class_=_advantage_class(picture.advantage_level(s), "l"), stroke_width=thick)


def _draw_prompt(root: Element, box: _Box) -> None:
    group = add(root, "g", class_="prompt")
    add(group, "rect", class_="box", x=box.x, y=box.y, width=box.width, height=box.height, rx=6.0)
    add(group, "text", "PROMPT", class_="head", x=box.x + _PAD, y=box.y + 14)
    for n, line in enumerate(box.lines):
        add(group, "text", line[0].text, x=box.x + _PAD, y=_baseline(box, n))


def _draw_box(root: Element, picture: Picture, s: int, box: _Box) -> None:
    group = add(root, "g", class_="segment")
    head = add(group, "g")
    add(head, "title", f"segment {s}: {picture.segment_note(s)}")
    add(head, "rect", class_="box", x=box.x, y=box.y, width=box.width, height=box.height, rx=6.0)
    level = picture.advantage_level(s)
    add(head, "path", class_=_advantage_class(level, "a"), d=_top_rounded(box))
    if picture.advantage is not None:
        add(head, "text", f"A {signed(picture.advantage[s])}", class_="head", x=box.x + _PAD, y=box.y + 14)
    count = int(picture.forest.leaf_count[s])
    if count > 1:
        add(head, "text", f"{count} leaves", class_="head end", x=box.x + box.width - _PAD, y=box.y + 14)
    first = int(picture.forest.start[s])
    notes: dict[int, Element] = {}
    for n, line in enumerate(box.lines):
        for run in line:
            _draw_run(group, notes, picture, s, first, run, box.x + _PAD + run.column * _CHAR, box, n)


def _draw_run(group: Element, notes: dict[int, Element], picture: Picture, s: int, first: int, run: _Run, x: float, box: _Box, n: int) -> None:
    if run.token is None:
        add(group, "text", run.text, class_="left-out", x=x, y=_baseline(box, n))
        return
    if run.token not in notes:
        notes[run.token] = add(group, "g", class_=f"t e{picture.entropy_level(first + run.token)}")
        add(notes[run.token], "title", picture.token_note(s, run.token))
    width = cell_len(run.text) * _CHAR
    token = notes[run.token]
    add(token, "rect", x=x + 0.4, y=_baseline(box, n) - 13, width=width - 0.8, height=_LINE - 1.5, rx=2.5)
    add(token, "text", run.text, x=x, y=_baseline(box, n), textLength=width)


def _draw_badge(root: Element, picture: Picture, leaf: int, box: _Box) -> None:
    verdict = Verdict(int(picture.forest.verdict[leaf])).name.lower()
    group = add(root, "g", class_=f"badge {verdict}")
    x = box.x + box.width + 14
    add(group, "title", picture.forest.detail[leaf] if picture.forest.detail and picture.forest.detail[leaf] else f"leaf {leaf}")
    add(group, "path", d=f"M{box.x + box.width:.1f} {box.middle:.1f}H{x:.1f}")
    note = picture.leaf_note(leaf)
    add(group, "rect", x=x, y=box.middle - 11, width=len(note) * 6.9 + 18, height=22.0, rx=11.0)
    add(group, "text", note, x=x + 9, y=box.middle + 4)


def _draw_legend(root: Element, picture: Picture, y: float) -> None:
    group = add(root, "g", class_="legend")
    add(group, "text", "token entropy", x=4.0, y=y + 10)
    for level in range(ENTROPY_LEVELS):
        swatch = add(group, "g", class_=f"t e{level}")
        add(swatch, "rect", x=90.0 + 16 * level, y=y, width=14.0, height=13.0, rx=2.5)
    add(group, "text", f"0 to {picture.top_entropy:.2f} nats", x=90.0 + 16 * ENTROPY_LEVELS + 6, y=y + 10)
    if picture.advantage is None:
        return
    x = 330.0
    add(group, "text", "segment advantage", x=x, y=y + 10)
    for n, level in enumerate(range(-ADVANTAGE_LEVELS, ADVANTAGE_LEVELS + 1)):
        add(group, "rect", class_=_advantage_class(level, "a"), x=x + 116 + 16 * n, y=y, width=14.0, height=13.0, rx=2.5)
    ends = f"{signed(-picture.top_advantage)} to {signed(picture.top_advantage)}; a curve is as thick as the leaves below it"
    add(group, "text", ends, x=x + 116 + 16 * (2 * ADVANTAGE_LEVELS + 1) + 6, y=y + 10)


def _advantage_class(level: int, prefix: str) -> str:
    return f"{prefix} {prefix}{'n' if level < 0 else 'p' if level > 0 else ''}{abs(level)}"


def _top_rounded(box: _Box) -> str:
    """The head of a box: its upper corners rounded like the box's."""
    return f"M{box.x:.1f} {box.y + _HEAD:.1f}v-{_HEAD - 6:.1f}a6 6 0 0 1 6 -6h{box.width - 12:.1f}a6 6 0 0 1 6 6v{_HEAD - 6:.1f}z"


def _baseline(box: _Box, line: int) -> float:
    return box.y + _HEAD + 14 + line * _LINE
