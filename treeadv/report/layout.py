"""Computes the positions of the boxes of a drawn forest. Text has a fixed width; trees grow from left to right."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len, chop_cells

from treeadv.forest import Forest
from treeadv.report.picture import Picture, elided

COLUMNS = 30  # characters of a line in a box
LINES = 14  # largest number of lines of a box; the middle of a longer text is omitted
PROMPT_COLUMNS, PROMPT_LINES = 24, 16
CHAR, LINE, PAD, HEAD = 7.2, 18.0, 8.0, 20.0  # pixels: a character of 12 px type, a line, the margin, the head of a box
_MIN_WIDTH = 124.0  # fits an advantage and a number of leaves
_GAP_X, _GAP_Y, _GAP_TREE, _TOP = 46.0, 12.0, 26.0, 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRun:
    """The part of one token that is on one line of a box.

    `token` is the index of the token in the segment; it is None for text that is not a token."""

    text: str
    token: int | None
    column: int

    @property
    def width(self) -> float:
        return cell_len(self.text) * CHAR


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A box with its lines of text. The upper left corner is (x, y)."""

    lines: Sequence[Sequence[TextRun]]
    x: float
    y: float
    width: float

    @property
    def height(self) -> float:
        return _height(self.lines)

    @property
    def right(self) -> float:
        return self.x + self.width

    @property
    def middle(self) -> float:
        return self.y + self.height / 2

    def baseline(self, line: int) -> float:
        return self.y + HEAD + 14 + line * LINE


def layout(p: Picture) -> tuple[Box, list[Box], float]:
    """Return (box of the prompt, boxes of the segments, lower end of the drawing).

    A box is to the right of its parent, at the middle height of its children."""
    f = p.forest
    lines = [_token_lines(pieces) for pieces in p.pieces]
    width = [max(_MIN_WIDTH, max(r.column * CHAR + r.width for line in rows for r in line) + 2 * PAD) for rows in lines]
    prompt_lines = _text_lines(p.prompt.replace("⏎", ""))
    prompt_width = PROMPT_COLUMNS * CHAR + 2 * PAD
    x = [0.0] * f.segments
    for s, parent in enumerate(f.parent):
        x[s] = _GAP_X + (x[parent] + width[parent] if parent >= 0 else prompt_width)
    y, bottom = _heights(f, [_height(rows) for rows in lines])
    boxes = [
        Box(lines=rows, x=left, y=top, width=wide) for rows, left, top, wide in zip(lines, x, y, width, strict=True)
    ]
    prompt = Box(lines=prompt_lines, x=0.5, y=max(_TOP, (bottom - _height(prompt_lines)) / 2), width=prompt_width)
    return prompt, boxes, max(bottom, prompt.y + prompt.height)


def _heights(f: Forest, own: Sequence[float]) -> tuple[list[float], float]:
    """Return (upper edge of each box [S], lower end of the drawing).

    Subtrees are stacked vertically. A box is at the middle height of its subtree."""
    need = list(own)  # height of each subtree
    for s in range(f.segments - 1, -1, -1):
        need[s] = max(own[s], _stacked(need, f.children[s]))
    top = [0.0] * f.segments  # upper edge of each subtree
    below = _TOP
    for s, parent in enumerate(f.parent):
        if parent < 0:
            top[s], below = below, below + need[s] + _GAP_TREE
        at = top[s] + (need[s] - _stacked(need, f.children[s])) / 2
        for c in f.children[s]:
            top[c], at = at, at + need[c] + _GAP_Y
    return [top[s] + (need[s] - own[s]) / 2 for s in range(f.segments)], below - _GAP_TREE


def _stacked(need: Sequence[float], children: Sequence[int]) -> float:
    return sum(need[c] for c in children) + _GAP_Y * max(0, len(children) - 1)


def _height(lines: Sequence[Sequence[TextRun]]) -> float:
    return HEAD + len(lines) * LINE + PAD / 2


def _token_lines(pieces: Sequence[str]) -> list[list[TextRun]]:
    """Break the tokens of a segment into lines of at most COLUMNS cells. If there are more than LINES lines, omit the
    middle."""
    lines: list[list[TextRun]] = [[]]
    column = 0
    for i, piece in enumerate(pieces):
        for n, line in enumerate(piece.split("\n")):
            for m, text in enumerate(_cut(line)):
                if (n and not m) or column + cell_len(text) > COLUMNS:
                    lines.append([])
                    column = 0
                lines[-1].append(TextRun(text=text, token=i, column=column))
                column += cell_len(text)
            if n and not line:
                column = COLUMNS  # the token ends with a line break, so the next token starts a line
    lines = [line for line in lines if line] or [[TextRun(text=" ", token=0, column=0)]]
    head, tail = elided(len(lines), LINES)
    if not tail:
        return lines
    shown = {run.token for i in (*head, *tail) for run in lines[i]}
    mark = TextRun(text=f"… {len(pieces) - len(shown)} tokens left out …", token=None, column=0)
    return [*(lines[i] for i in head), [mark], *(lines[i] for i in tail)]


def _cut(text: str) -> Iterator[str]:
    """Yield the text, cut into parts that fit on a line. An empty text yields nothing."""
    if 0 < cell_len(text) <= COLUMNS:
        yield text
    elif text:
        yield from chop_cells(text, COLUMNS)


def _text_lines(text: str) -> list[list[TextRun]]:
    rows = [row for line in text.splitlines() for row in textwrap.wrap(line, PROMPT_COLUMNS)] or [" "]
    head, tail = elided(len(rows), PROMPT_LINES)
    return [
        [TextRun(text=row, token=None, column=0)]
        for row in [*(rows[i] for i in head), *(["…"] if tail else []), *(rows[i] for i in tail)]
    ]
