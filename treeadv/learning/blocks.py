"""Splits the rows of a forest into blocks, each of which attends to itself and to blocks of ancestors.

One block for a whole tree computes scores between all of its rows, and the mask removes those between two branches. A
tree of long branches is therefore cut: the rows of a segment become a block, and each branch below it becomes a tree of
its own. The same cut removes most of the future rows of a long segment. A cut is made only where it saves more scores
than a further call of the kernel costs. The attention of a row is the same for every cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

Range = tuple[int, int]

CHUNK = 512  # a longer segment may be cut after each number of CHUNK rows
# A further block takes as long as this number of scores (`python -m benchmarks.attention`).
BLOCK_SCORES = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """The rows `query`, which attend only to themselves and to the rows of the blocks `context`.

    The ranges are (first, one past the last). The blocks of `context` are in the order of their rows."""

    query: Range
    context: tuple[Range, ...] = ()

    def shifted(self, by: int) -> Block:
        """Return the block with `by` added to every row."""
        return Block(query=_shift(self.query, by), context=tuple(_shift(c, by) for c in self.context))


@dataclass(slots=True, kw_only=True)
class _Node:
    """At most `CHUNK` rows of a segment, with the nodes and rows of its subtree."""

    above: int  # the node before it on the path, -1 for none
    first: int
    rows: int
    before: int  # rows on the path before the node
    prompt: bool  # the rows of a prompt are always apart from the trees
    nodes: int = 1
    subtree: int = 0
    below: int = 0  # cost of the blocks below the node

    @property
    def whole(self) -> int:
        """Return the scores of the subtree as one block."""
        return self.subtree * (self.before + self.subtree)

    @property
    def apart(self) -> int:
        """Return the scores of the node as a block, and the cost of the blocks below."""
        return self.rows * (self.before + self.rows) + self.below

    @property
    def cut(self) -> bool:
        """Return whether the node is a block without its subtree."""
        return self.prompt or self.apart < self.whole


def blocks(lengths: Sequence[int], parent: Sequence[int]) -> list[Block]:
    """Return the blocks that cover the rows of a prompt and its segments.

    `lengths` [S] are the rows of the segments in depth-first order, `parent` [S] their parents. Entry 0 is the prompt
    with the parent -1. Prompt and trees are always apart."""
    nodes = _nodes(lengths, parent)
    for node in reversed(nodes):
        node.subtree += node.rows
        if node.above >= 0:
            above = nodes[node.above]
            above.nodes, above.subtree = above.nodes + node.nodes, above.subtree + node.subtree
            above.below += (BLOCK_SCORES if node.subtree else 0) + (node.apart if node.cut else node.whole)
    found: list[Block] = []
    path: dict[int, tuple[Range, ...]] = {-1: ()}  # the blocks from the prompt to each node
    i = 0
    while i < len(nodes):
        node = nodes[i]
        rows = node.rows if node.cut else node.subtree
        block = Block(query=(node.first, node.first + rows), context=path[node.above])
        if rows:
            found.append(block)
        path[i] = (*block.context, block.query)
        i += 1 if node.cut else node.nodes
    return found


def _nodes(lengths: Sequence[int], parent: Sequence[int]) -> list[_Node]:
    nodes: list[_Node] = []
    last: dict[int, int] = {-1: -1}  # segment -> its last node
    for segment, (start, rows, up) in enumerate(zip(accumulate(lengths, initial=0), lengths, parent, strict=False)):
        above = last[up]
        for offset in range(0, max(rows, 1), CHUNK):
            before = nodes[above].before + nodes[above].rows if above >= 0 else 0
            size = min(CHUNK, rows - offset)
            nodes.append(_Node(above=above, first=start + offset, rows=size, before=before, prompt=segment == 0))
            above = len(nodes) - 1
        last[segment] = above
    return nodes


def _shift(rows: Range, by: int) -> Range:
    return rows[0] + by, rows[1] + by
