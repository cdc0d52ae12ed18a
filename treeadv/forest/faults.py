"""The invariants of a forest. Each function returns the reason why a forest is not sound, or None."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from treeadv.forest.labels import Finish, Ints, Verdict
from treeadv.forest.structure import ForestArrays

JOINED_TOKENS = 1 << 18  # more tokens are not joined: the copy costs as much as the checks of large forests
_LABELS = {name: np.array(list(kind), np.int8) for name, kind in (("finish", Finish), ("verdict", Verdict))}


def find_fault(f: ForestArrays) -> str | None:
    """Return the first invariant that does not hold, or None for a sound forest."""
    checks = (_length_fault, _span_fault, _order_fault, _fork_fault, _value_fault, _version_fault, _grade_fault)
    return next((reason for check in checks if (reason := check(f))), None)


def all_sound(forests: Sequence[ForestArrays]) -> bool:
    """Return True only if all forests are sound. It may be False for sound forests if some are graded and others are
    not, so a caller then checks each.

    The trees of sound forests are also the trees of one sound forest. So the arrays of many small forests are joined
    and checked together, which takes a fraction of the time of a check of each."""
    if len(forests) < 2 or sum(len(f.token) for f in forests) > JOINED_TOKENS:
        return not any(map(find_fault, forests))
    if any(_length_fault(f) or _own_fault(f) for f in forests):
        return False
    return find_fault(_joined(forests)) is None


def _own_fault(f: ForestArrays) -> bool:
    """Return whether a forest breaks an invariant that the check of the joined arrays cannot see."""
    return (
        f.start[0] != 0
        or f.start[-1] != len(f.token)
        or f.parent[0] != -1
        or f.leaf_segment[0] < 0
        or f.leaf_segment[-1] >= len(f.parent)
        or not 0 < f.temperature < math.inf
    )


def _joined(forests: Sequence[ForestArrays]) -> ForestArrays:
    """Return one forest with the trees of all `forests`."""

    def joined(name: str) -> Any:
        return np.concatenate([getattr(f, name) for f in forests])

    def before(counts: Sequence[int], sizes: Sequence[int]) -> Ints:
        """Return the sum of the counts of the earlier forests, for each entry of a forest. `sizes` counts entries."""
        return np.repeat(np.cumsum([0, *counts[:-1]]), sizes)

    segments, leaves = [len(f.parent) for f in forests], [len(f.leaf_segment) for f in forests]
    tokens, trees = [len(f.token) for f in forests], [int(f.tree[-1]) + 1 for f in forests]
    parent = joined("parent")
    starts = np.concatenate([f.start[:-1] for f in forests]) + before(tokens, segments)
    same = ("arity", "budget", "token", "logprob", "entropy", "version", "finish", "reward", "verdict", "prompt")
    return replace(
        forests[0],
        parent=np.where(parent >= 0, parent + before(segments, segments), parent),
        start=np.append(starts, sum(tokens)),
        tree=joined("tree") + before(trees, segments),
        leaf_segment=joined("leaf_segment") + before(segments, leaves),
        detail=(),
        **{name: joined(name) for name in same},
    )


def _length_fault(f: ForestArrays) -> str | None:
    S, T, L = len(f.parent), len(f.token), len(f.leaf_segment)
    needed = {"start": S + 1} | dict.fromkeys(("tree", "arity", "budget"), S)
    needed |= dict.fromkeys(("logprob", "entropy", "version"), T) | dict.fromkeys(("finish", "reward", "verdict"), L)
    if f.detail:
        needed["detail"] = L
    for name, count in needed.items():
        if len(getattr(f, name)) != count:
            return f"{name} has {len(getattr(f, name))} entries, {count} are needed"
    if S == 0 or L == 0 or len(f.prompt) == 0:
        return "no segment, no leaf or an empty prompt"
    return None


def _span_fault(f: ForestArrays) -> str | None:
    if f.start[0] != 0 or f.start[-1] != len(f.token) or (np.diff(f.start.astype(np.int64)) <= 0).any():
        return "segments must hold at least one token each and cover the token arrays in order"
    return None


def _order_fault(f: ForestArrays) -> str | None:
    S = len(f.parent)
    if f.parent[0] != -1 or (f.parent >= np.arange(S)).any() or (f.parent < -1).any():
        return "a parent must stand before its children"
    if (f.tree != np.cumsum(f.parent == -1) - 1).any():
        return "tree numbers must count the roots in order"
    path: list[int] = []  # the segments from a root to the previous segment
    for s, parent in enumerate(f.parent.tolist()):
        while path and path[-1] != parent:
            path.pop()
        if parent != -1 and not path:
            return "segments must stand in depth-first order"
        path.append(s)
    return None


def _fork_fault(f: ForestArrays) -> str | None:
    children = np.bincount(f.parent[f.parent >= 0], minlength=len(f.parent))
    if (children > f.arity).any() or ((f.arity != 0) & (f.arity < 2)).any():
        return "arity must be 0 at a leaf, at least 2 at a fork, and not below the children that exist"
    if not np.array_equal(np.flatnonzero(children == 0), f.leaf_segment):
        return "leaf_segment must name the segments without children, in order"
    if (f.budget < 1).any():
        return "a segment's leaf budget must be at least 1"
    return None


def _value_fault(f: ForestArrays) -> str | None:
    wrong = np.flatnonzero(~np.isfinite(f.logprob) | (f.logprob > 0))
    if len(wrong):
        return f"log-probability {f.logprob[wrong[0]]} of token {wrong[0]} is not a finite number <= 0"
    wrong = np.flatnonzero(~np.isfinite(f.entropy) | (f.entropy < 0))
    if len(wrong):
        return f"entropy {f.entropy[wrong[0]]} of token {wrong[0]} is not a finite number >= 0"
    if not 0 < f.temperature < math.inf:
        return f"temperature {f.temperature} is not a finite number > 0"
    if (f.token < 0).any() or (f.prompt < 0).any() or (f.version < 0).any():
        return "token ids and versions must not be negative"
    return None


def _version_fault(f: ForestArrays) -> str | None:
    first, last = f.start[:-1], f.start[1:] - 1
    falls = np.diff(f.version) < 0
    falls[last[:-1]] = False  # the end of a segment and the start of the next segment are not adjacent on a path
    falls_at_fork = (f.parent >= 0) & (f.version[first] < f.version[last[np.maximum(f.parent, 0)]])
    return "the policy version decreases along a path" if falls.any() or falls_at_fork.any() else None


def _grade_fault(f: ForestArrays) -> str | None:
    for name, known in _LABELS.items():
        unknown = np.flatnonzero(~(getattr(f, name)[:, None] == known).any(1))  # np.isin takes twice as long
        if len(unknown):
            return f"{name} {getattr(f, name)[unknown[0]]} of leaf {unknown[0]} has no meaning"
    graded = f.verdict != Verdict.UNGRADED
    if graded.any() and not (graded.all() and np.isfinite(f.reward).all()):
        return "either every leaf or no leaf must be graded with a finite reward"
    return None
