"""Packs forests into micro-batches, with the indices for attention and loss.

Each token of a forest has one place, in Euler order. A *piece* is a range of segments of one forest in Euler order that
one micro-batch trains. The prompt and the ancestors of the range come before the range. The ancestors outside of the
range are computed again, with gradient, but add nothing to the loss. This is exact, because the loss of a token depends
only on its path. A forest within the token limit is one piece without repeated ancestors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from treeadv.forest import Forest
from treeadv.learning.blocks import Block, blocks

Index = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """The segments [first, last) of forest number `forest`. The ancestors `context` are computed again before them."""

    forest: int
    first: int
    last: int
    context: tuple[int, ...]
    tokens: int  # upper bound of the rows of the piece in a micro-batch: prompt, context and segments

    def whole(self, forests: Sequence[Forest]) -> bool:
        """Return whether the piece contains every segment of its forest."""
        return self.first == 0 and self.last == forests[self.forest].segments


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """One micro-batch of N rows (input tokens), U rows whose logits are needed, and T targets (trained tokens).

    The targets are ordered by piece, and in Euler order within a piece."""

    pieces: tuple[Piece, ...]
    token: Index  # [N]
    position: Index  # [N] position on the path, the prompt included, as in the flattened sequence
    # [N] one past the last row below row k. Row k is an ancestor of row q, or q itself, iff k <= q < end[k].
    end: Index
    blocks: tuple[Block, ...]  # the blocks cover all rows
    row: Index  # [U] rows whose logits are needed, increasing; all children of a segment use its last row
    source: Index  # [T] the entry of `row` whose logits predict the target
    target: Index  # [T] token ids
    temperature: npt.NDArray[np.float64]  # [U] temperature of the forest of the row
    # [pieces] the range of the targets of a piece. They are the tokens start[first]:start[last] of its forest.
    span: tuple[tuple[int, int], ...]


def pieces(forests: Sequence[Forest], limit: int) -> list[Piece]:
    """Cut forests into pieces of at most `limit` rows, in order.

    A piece has more rows only if a single segment with its ancestors exceeds the limit."""
    out = []
    for number, f in enumerate(forests):
        first, P = 0, len(f.prompt)
        while first < f.segments:
            context = _ancestors(f, first)
            rows = P + int(f.offset[first])
            room = min(limit - rows, f.tokens)  # a larger limit may exceed the integers of numpy
            fits = np.searchsorted(f.start, room + f.start[first], side="right") - 1
            last = max(first + 1, int(fits))
            out.append(
                Piece(
                    forest=number,
                    first=first,
                    last=last,
                    context=context,
                    tokens=rows + int(f.start[last] - f.start[first]),
                )
            )
            first = last
    return out


def group(parts: Sequence[Piece], limit: int) -> list[list[Piece]]:
    """Group pieces into micro-batches of at most `limit` rows (first-fit decreasing).

    The longest piece is placed first. Each piece goes into the first micro-batch that has room."""
    bins: list[list[Piece]] = []
    room: list[int] = []
    for p in sorted(parts, key=lambda p: (-p.tokens, p.forest, p.first)):
        at = next((i for i, left in enumerate(room) if p.tokens <= left), None)
        if at is None:
            bins.append([])
            room.append(limit)
            at = len(bins) - 1
        bins[at].append(p)
        room[at] -= p.tokens
    return bins


def filler(forests: Sequence[Forest]) -> Packed:
    """Return a small micro-batch without targets, for a rank that has fewer micro-batches than another rank."""
    f = forests[0]
    return replace(
        pack(forests, [Piece(forest=0, first=0, last=1, context=(), tokens=len(f.prompt) + int(f.lengths[0]))]),
        pieces=(),
        span=(),
    )


def balance(cost: Sequence[int], world: int) -> list[list[int]]:
    """Assign forests to ranks.

    The forest with the most rows is assigned first. Each forest goes to the rank with the fewest rows so far. `cost` is
    the number of rows by forest. Every rank computes the same result, so the ranks exchange no message."""
    share: list[list[int]] = [[] for _ in range(world)]
    load = [0] * world
    for f in sorted(range(len(cost)), key=lambda f: (-cost[f], f)):
        at = load.index(min(load))
        share[at].append(f)
        load[at] += cost[f]
    return share


def pack(forests: Sequence[Forest], parts: Sequence[Piece]) -> Packed:
    """Return the micro-batch that consists of the pieces `parts`."""
    laid = [_piece_arrays(forests[p.forest], p) for p in parts]
    rows = np.cumsum([0] + [len(x.token) for x in laid])
    targets = np.cumsum([0] + [len(x.target) for x in laid])
    source = np.concatenate([x.source + a for x, a in zip(laid, rows[:-1], strict=True)])
    row, source = np.unique(source, return_inverse=True)
    return Packed(
        pieces=tuple(parts),
        token=np.concatenate([x.token for x in laid]),
        position=np.concatenate([x.position for x in laid]),
        end=np.concatenate([x.end + a for x, a in zip(laid, rows[:-1], strict=True)]),
        blocks=tuple(b.shifted(int(a)) for x, a in zip(laid, rows[:-1], strict=True) for b in x.blocks),
        row=row,
        source=source.astype(np.int64),
        target=np.concatenate([x.target for x in laid]),
        temperature=np.repeat([float(forests[p.forest].temperature) for p in parts], np.diff(rows))[row],
        span=tuple((int(a), int(b)) for a, b in pairwise(targets)),
    )


@dataclass(frozen=True, slots=True)
class _PieceArrays:
    """The arrays of one piece. Row numbers count from the first row of the piece."""

    token: Index
    position: Index
    end: Index
    blocks: tuple[Block, ...]
    source: Index
    target: Index


def _piece_arrays(f: Forest, p: Piece) -> _PieceArrays:
    P = len(f.prompt)
    segments = np.array([*p.context, *range(p.first, p.last)])
    parent, lengths = f.parent[segments], f.lengths[segments].astype(np.int64)
    fed = lengths - (f.arity[segments] == 0)  # the last token of a leaf predicts nothing and needs no row
    at = P + np.concatenate([[0], np.cumsum(fed)])  # first row of each segment
    rows = int(at[-1])
    inside = np.arange(P, rows) - np.repeat(at[:-1], fed)  # index of each row in its segment
    # The subtree of segment s ends before the first segment of the piece that follows the subtree in Euler order.
    below = at[np.searchsorted(segments, f.subtree_end[segments])]
    # the prompt is entry 0 of the tree of rows
    above = np.where(parent < 0, 0, np.searchsorted(segments, parent) + 1)
    # The row before a target predicts the target. The last row of the parent, or of the prompt, predicts the first
    # token of a segment.
    up = np.where(parent < 0, P, at[np.searchsorted(segments, parent) + 1]) - 1
    trained = slice(len(p.context), None)
    place = np.arange(lengths[trained].sum()) - np.repeat(
        np.cumsum(lengths[trained]) - lengths[trained], lengths[trained]
    )
    before = np.repeat(at[:-1][trained], lengths[trained]) + place - 1
    return _PieceArrays(
        token=np.concatenate([f.prompt, f.token[np.repeat(f.start[segments], fed) + inside]]).astype(np.int64),
        position=np.concatenate([np.arange(P), P + np.repeat(f.offset[segments], fed) + inside]).astype(np.int64),
        end=np.concatenate([np.full(P, rows), np.repeat(below, fed)]).astype(np.int64),
        blocks=tuple(blocks([P, *fed.tolist()], [-1, *above.tolist()])),
        source=np.where(place == 0, np.repeat(up[trained], lengths[trained]), before).astype(np.int64),
        target=f.token[f.start[p.first] : f.start[p.last]].astype(np.int64),
    )


def _ancestors(f: Forest, s: int) -> tuple[int, ...]:
    return tuple(f.path(s)[:-1])
