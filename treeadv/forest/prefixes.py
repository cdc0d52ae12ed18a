"""The tree that the equal prefixes of token sequences form."""

from __future__ import annotations

from collections.abc import Iterable


def prefix_order(sequences: list[list[int]]) -> list[int]:
    """Return the order of the sequences in `Forest.from_rollouts`. Leaf i is the sequence order[i].

    >>> prefix_order([[5, 6, 7], [9], [5, 6, 8]])
    [0, 2, 1]
    """
    return prefix_tree(sequences)[2]


def prefix_tree(
    sequences: list[list[int]],
) -> tuple[list[int], list[tuple[int, int, int]], list[int], list[list[int]]]:
    """Return (parent [S], spans [S], order [L], members [S]) of the tree of prefixes.

    Segment s holds the tokens [a, b) of sequence i for spans[s] = (i, a, b). members[s] are the sequences that share
    segment s. Leaf n is the sequence order[n]."""
    parent: list[int] = []
    spans: list[tuple[int, int, int]] = []
    order: list[int] = []
    below: list[list[int]] = []
    stack = [(-1, 0, group) for group in reversed(_groups(sequences, range(len(sequences)), 0))]
    while stack:
        above, start, members = stack.pop()
        first, end = members[0], start + 1
        if len(members) == 1:
            end = len(sequences[first])
            order.append(first)
        else:
            while len(_groups(sequences, members, end)) == 1:
                end += 1
            stack += [(len(parent), end, group) for group in reversed(_groups(sequences, members, end))]
        parent.append(above)
        spans.append((first, start, end))
        below.append(members)
    return parent, spans, order, below


def _groups(sequences: list[list[int]], members: Iterable[int], at: int) -> list[list[int]]:
    """Group the members by their token at position `at`. A member that ends with this token is a group of its own."""
    groups: dict[tuple[int, int], list[int]] = {}
    for i in members:
        alone = i if len(sequences[i]) == at + 1 else -1
        groups.setdefault((sequences[i][at], alone), []).append(i)
    return list(groups.values())
