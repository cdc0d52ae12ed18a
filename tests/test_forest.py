"""Tests the invariants of a forest (docs/architecture.md) by properties and on the worked example."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import build, forests
from treeadv.errors import BadForest
from treeadv.forest import Forest
from treeadv.forest.faults import all_sound, find_fault

# a0 (2 tokens) -> a1 (3) | a2 (1) -> a3 (2) | a4 (4); b0 (5)
WORKED = build([-1, 0, 0, 2, 2, -1], [2, 3, 1, 2, 4, 5], rewards=[1, 0, 1, 0])


def test_worked_example_has_17_tokens_and_22_expanded():
    assert (WORKED.tokens, WORKED.expanded_tokens, WORKED.leaves, WORKED.trees) == (17, 22, 4, 2)
    assert WORKED.sharing == pytest.approx(1 - 17 / 22)
    assert WORKED.leaf_count.tolist() == [3, 1, 2, 1, 1, 1]
    assert WORKED.depth.tolist() == [0, 1, 1, 2, 2, 0]
    assert WORKED.offset.tolist() == [0, 2, 2, 3, 3, 0]
    assert WORKED.subtree_end.tolist() == [5, 2, 5, 4, 5, 6]
    assert WORKED.segment(2).leaves == range(1, 3) and WORKED.segment(2).subtree == range(2, 5)
    assert WORKED.leaf_tokens(2).tolist() == [*WORKED.token[0:2], *WORKED.token[5:6], *WORKED.token[8:12]]


@given(forests())
def test_subtrees_and_leaves_are_contiguous_ranges(f: Forest):
    for s in range(f.segments):
        below = [x for x in range(f.segments) if s in f.path(x)]
        assert below == list(f.segment(s).subtree)
        assert [i for i, x in enumerate(f.leaf_segment) if int(x) in below] == list(f.segment(s).leaves)


@given(forests())
def test_expanded_tokens_are_the_tokens_of_the_flattened_leaves(f: Forest):
    assert f.expanded_tokens == sum(len(f.leaf_tokens(i)) for i in range(f.leaves))
    for i in range(f.leaves):
        end = int(f.leaf_segment[i])
        assert len(f.leaf_tokens(i)) == f.offset[end] + f.lengths[end]


@given(forests(), st.randoms())
def test_order_that_is_not_depth_first_is_refused(f: Forest, random):
    """The test chooses any earlier segment as the parent of a segment. The forest is accepted only if its order is
    still depth-first."""
    s = random.randrange(f.segments)
    parent = f.parent.copy()
    parent[s] = random.randrange(-1, f.segments)
    seen: list[int] = []

    def visit(x: int) -> None:
        seen.append(x)
        for c in np.flatnonzero(parent == x):
            visit(int(c))

    if (parent < np.arange(f.segments)).all():
        for root in np.flatnonzero(parent == -1):
            visit(int(root))
    depth_first = seen == list(range(f.segments))
    kids = np.bincount(parent[parent >= 0], minlength=f.segments).astype(np.int32)
    moved = replace(
        f,
        parent=parent,
        tree=(np.cumsum(parent == -1) - 1).astype(np.int32),
        arity=np.where(kids == 0, 0, np.maximum(kids, 2)).astype(np.int32),
        leaf_segment=(ends := np.flatnonzero(kids == 0).astype(np.int32)),
        finish=np.zeros(len(ends), np.int8),
        reward=np.zeros(len(ends), np.float32),
        verdict=np.zeros(len(ends), np.int8),
    )
    if depth_first:
        moved.check()
    else:
        with pytest.raises(BadForest):
            moved.check()


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda f: {"logprob": _with(f.logprob, 3, 0.5)}, "log-probability 0.5 of token 3"),
        (lambda f: {"logprob": _with(f.logprob, 3, np.nan)}, "log-probability nan of token 3"),
        (lambda f: {"entropy": _with(f.entropy, 2, -1)}, "entropy -1.0 of token 2"),
        (lambda f: {"version": _with(f.version, 1, 4)}, "version decreases along a path"),
        (lambda f: {"version": _with(f.version, 9, 4)}, "version decreases along a path"),
        (lambda f: {"start": _with(f.start, 1, 0)}, "at least one token each"),
        (lambda f: {"tree": _with(f.tree, 5, 0)}, "tree numbers"),
        (lambda f: {"arity": _with(f.arity, 0, 1)}, "arity"),
        (lambda f: {"leaf_segment": _with(f.leaf_segment, 0, 2)}, "leaf_segment"),
        (lambda f: {"budget": _with(f.budget, 0, 0)}, "budget"),
        (lambda f: {"reward": _with(f.reward, 0, np.nan)}, "finite reward"),
        (lambda f: {"verdict": _with(f.verdict, 0, -1)}, "every leaf or no leaf must be graded"),
        (lambda f: {"token": f.token[:-1]}, "start"),
        (lambda f: {"entropy": f.entropy[:-1]}, "entropy has 16 entries, 17 are needed"),
        (lambda f: {"detail": ("x",)}, "detail has 1 entries"),
        (lambda f: {"prompt": f.prompt[:0]}, "empty prompt"),
    ],
)
def test_broken_forest_is_refused_with_id_and_reason(change, reason):
    with (
        pytest.raises(BadForest, match=f"forest f: .*{reason}")
        if reason != "start"
        else pytest.raises(BadForest, match="forest f: ")
    ):
        replace(WORKED, **change(WORKED)).check()


PER_SEGMENT, PER_LEAF = ("parent", "tree", "arity", "budget"), ("leaf_segment", "finish", "reward", "verdict")
PER_TOKEN = ("token", "logprob", "entropy", "version")


def _changed(f: Forest, random) -> Forest:
    """Return the forest with another value in one place."""
    name = random.choice((*PER_SEGMENT, *PER_LEAF, *PER_TOKEN, "start", "prompt"))
    array = getattr(f, name)
    at = random.randrange(len(array))
    return replace(f, **{name: _with(array, at, int(array[at]) + random.choice([-9, -2, -1, 1, 2, 9]))})


def _with_moved_end(a: Forest, b: Forest, random) -> tuple[Forest, Forest]:
    """Return the forests after the last entry of some arrays of `a` has become the first entry of those of `b`."""
    names = random.choice((PER_SEGMENT, PER_LEAF, PER_TOKEN, ("prompt",), ("parent",), ("leaf_segment",), ("start",)))
    ends = {n: getattr(a, n)[:-1] for n in names}
    starts = {n: np.concatenate([getattr(a, n)[-1:], getattr(b, n)]) for n in names}
    return replace(a, **ends), replace(b, **starts)


@given(st.lists(forests(max_segments=8), min_size=1, max_size=4), st.randoms(), st.booleans())
def test_one_check_of_many_forests_misses_no_fault(some: list[Forest], random, moves: bool):
    assert all_sound(some)
    i = random.randrange(len(some))
    if moves and i:
        some[i - 1 : i + 1] = _with_moved_end(some[i - 1], some[i], random)
    else:
        some[i] = _changed(some[i], random)
    assert not all_sound(some) or not any(map(find_fault, some))


def test_leaf_of_the_next_forest_is_no_leaf_of_this_one():
    """The arrays of both forests together are those of two sound forests."""
    more = replace(WORKED, **{n: np.append(getattr(WORKED, n), getattr(WORKED, n)[:1]) for n in PER_LEAF})
    more = replace(more, leaf_segment=_with(more.leaf_segment, -1, WORKED.segments + 1))
    fewer = replace(WORKED, **{n: getattr(WORKED, n)[1:] for n in PER_LEAF})
    assert not all_sound([more, fewer]) and all_sound([WORKED, WORKED])


def test_version_may_rise_along_a_path():
    version = WORKED.version.copy()
    version[5:12] = 2  # the second child and its subtree
    grown = replace(WORKED, version=version).check()
    assert (grown.oldest_version, grown.newest_version) == (0, 2)


def _with(array: np.ndarray, at: int, value: float) -> np.ndarray:
    out = array.copy()
    out[at] = value
    return out
