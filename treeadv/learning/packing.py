"""Lays forests out as micro-batches: every token once, in Euler order, with the indices that attention and loss use.

A *piece* is what one micro-batch trains of one forest: a run of segments in Euler order, preceded by the prompt and
by those ancestors of the run that lie outside of it (they are computed again, with gradient, but not counted again,
which is exact: the loss of a token depends on its path alone). A forest within the token limit is one piece without
repeated ancestors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from treeadv.forest import Forest

Index = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Piece:
    """Segments [first, last) of forest number `forest`, after the ancestors `context` that are computed again."""

    forest: int
    first: int
    last: int
    context: tuple[int, ...]
    tokens: int  # at most this many rows in a micro-batch: prompt, context, run

    def whole(self, forests: Sequence[Forest]) -> bool:
        """Whether the piece is a whole forest."""
        return self.first == 0 and self.last == forests[self.forest].segments


@dataclass(frozen=True, slots=True)
class Block:
    """Rows [query) attend, as far as the tree allows, to rows [prompt) and [query): a tree with its prompt, or a
    prompt alone."""

    query: tuple[int, int]
    prompt: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Packed:
    """One micro-batch. N rows (input tokens), U rows whose logits are needed, T targets (tokens trained, in Euler
    order by piece)."""

    pieces: tuple[Piece, ...]
    token: Index  # [N]
    position: Index  # [N] depth along the path, the prompt included: what the flattened sequence would give
    # [N] one past the last row below this one: row k is an ancestor of row q, or q itself, iff k <= q < end[k]
    end: Index
    blocks: tuple[Block, ...]  # cover the rows
    row: Index  # [U] rows whose logits are needed, increasing; the last row of a parent serves all its children
    source: Index  # [T] the entry of `row` whose logits predict the target
    target: Index  # [T] token ids
    temperature: npt.NDArray[np.float64]  # [U] of the row's forest
    span: tuple[tuple[int, int], ...]  # [pieces] its targets, the tokens start[first]:start[last] of its forest


def pieces(forests: Sequence[Forest], limit: int) -> list[Piece]:
    """Cut forests into pieces of at most `limit` rows, in order. Only a single path longer than the limit makes a
    longer piece."""
    out = []
    for number, f in enumerate(forests):
        first, P = 0, len(f.prompt)
        while first < f.segments:
            context = _ancestors(f, first)
            rows = P + int(f.offset[first])
            fits = np.searchsorted(f.start, limit - rows + f.start[first], side="right") - 1
            last = max(first + 1, int(fits))
            out.append(Piece(number, first, last, context, rows + int(f.start[last] - f.start[first])))
            first = last
    return out


def group(parts: Sequence[Piece], limit: int) -> list[list[Piece]]:
    """Fill micro-batches of at most `limit` rows: each piece, longest first, into the first that has room (first-fit
    decreasing)."""
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
    """A small micro-batch of which nothing is trained, for a rank that has nothing left while others compute."""
    f = forests[0]
    return replace(pack(forests, [Piece(0, 0, 1, (), len(f.prompt) + int(f.lengths[0]))]), pieces=(), span=())


def balance(cost: Sequence[int], world: int) -> list[list[int]]:
    """Deal forests to ranks by their rows, dearest first to the least loaded: the same on every rank, so nothing
    need be sent."""
    share: list[list[int]] = [[] for _ in range(world)]
    load = [0] * world
    for f in sorted(range(len(cost)), key=lambda f: (-cost[f], f)):
        at = load.index(min(load))
        share[at].append(f)
        load[at] += cost[f]
    return share


def pack(forests: Sequence[Forest], parts: Sequence[Piece]) -> Packed:
    """Lay pieces one after another into one micro-batch."""
    laid = [_lay(forests[p.forest], p) for p in parts]
    rows = np.cumsum([0] + [len(x.token) for x in laid])
    targets = np.cumsum([0] + [len(x.target) for x in laid])
    source = np.concatenate([x.source + a for x, a in zip(laid, rows[:-1], strict=True)])
    row, source = np.unique(source, return_inverse=True)
    return Packed(
        pieces=tuple(parts),
        token=np.concatenate([x.token for x in laid]),
        position=np.concatenate([x.position for x in laid]),
        end=np.concatenate([x.end + a for x, a in zip(laid, rows[:-1], strict=True)]),
        blocks=tuple(_shift(b, int(a)) for x, a in zip(laid, rows[:-1], strict=True) for b in x.blocks),
        row=row,
        source=source.astype(np.int64),
        target=np.concatenate([x.target for x in laid]),
        temperature=np.repeat([float(forests[p.forest].temperature) for p in parts], np.diff(rows))[row],
        span=tuple((int(a), int(b)) for a, b in pairwise(targets)),
    )


@dataclass(frozen=True, slots=True)
class _Laid:
    """One piece, rows counted from its own first."""

    token: Index
    position: Index
    end: Index
    blocks: tuple[Block, ...]
    source: Index
    target: Index


def _lay(f: Forest, p: Piece) -> _Laid:
    P = len(f.prompt)
    segments = np.array([*p.context, *range(p.first, p.last)])
    parent, lengths = f.parent[segments], f.lengths[segments].astype(np.int64)
    fed = lengths - (f.arity[segments] == 0)  # the last token of a leaf predicts nothing: no row
    at = P + np.concatenate([[0], np.cumsum(fed)])  # first row of each segment laid
    rows = int(at[-1])
    inside = np.arange(P, rows) - np.repeat(at[:-1], fed)  # place of each row in its segment
    # The subtree of segment s ends before the first laid segment that Euler order puts outside of it.
    below = at[np.searchsorted(segments, f.subtree_end[segments])]
    roots = at[[*np.flatnonzero(np.diff(f.tree[segments], prepend=-1)), len(segments)]]
    trees = [(int(a), int(b)) for a, b in pairwise(roots) if a < b]
    # A target is predicted by the row before it, the first of a segment by the last row of its parent or of the prompt.
    up = np.where(parent < 0, P, at[np.searchsorted(segments, parent) + 1]) - 1
    trained = slice(len(p.context), None)
    place = np.arange(lengths[trained].sum()) - np.repeat(
        np.cumsum(lengths[trained]) - lengths[trained], lengths[trained]
    )
    before = np.repeat(at[:-1][trained], lengths[trained]) + place - 1
    return _Laid(
        token=np.concatenate([f.prompt, f.token[np.repeat(f.start[segments], fed) + inside]]).astype(np.int64),
        position=np.concatenate([np.arange(P), P + np.repeat(f.offset[segments], fed) + inside]).astype(np.int64),
        end=np.concatenate([np.full(P, rows), np.repeat(below, fed)]).astype(np.int64),
        blocks=(Block((0, P), (0, 0)), *(Block(t, (0, P)) for t in trees)),
        source=np.where(place == 0, np.repeat(up[trained], lengths[trained]), before).astype(np.int64),
        target=f.token[f.start[p.first] : f.start[p.last]].astype(np.int64),
    )


def _ancestors(f: Forest, s: int) -> tuple[int, ...]:
    return tuple(f.path(s)[:-1])


def _shift(b: Block, by: int) -> Block:
    return Block((b.query[0] + by, b.query[1] + by), (b.prompt[0] + by, b.prompt[1] + by))
