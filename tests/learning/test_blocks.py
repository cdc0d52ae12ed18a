"""Tests the split of the rows of a forest into blocks of attention."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.learning import tiny
from tests.strategies import build, forests
from treeadv.forest import Forest
from treeadv.learning import blocks, loading, packing
from treeadv.learning.blocks import Block


def cut(f: Forest) -> list[Block]:
    rows = f.lengths - (f.arity == 0)
    return blocks.blocks([len(f.prompt), *rows.tolist()], [-1, *(f.parent + 1).tolist()])


def scores(found: list[Block]) -> int:
    """Return the number of scores that the blocks compute."""
    return sum((b.query[1] - b.query[0]) * sum(y - x for x, y in (*b.context, b.query)) for b in found)


@given(f=forests(max_segments=12), chunk=st.integers(1, 6), cost=st.integers(0, 60))
def test_blocks_cover_all_rows_once_in_order(f, chunk, cost):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "CHUNK", chunk)
        patch.setattr(blocks, "BLOCK_SCORES", cost)
        found = cut(f)
    rows = len(f.prompt) + int(f.lengths.sum() - (f.arity == 0).sum())
    assert [x for b in found for x in range(*b.query)] == list(range(rows))
    queries = [b.query for b in found]
    assert all(c in queries[:i] for i, b in enumerate(found) for c in b.context)


@given(f=forests(max_segments=12), chunk=st.integers(1, 6), cost=st.integers(0, 60))
def test_a_cut_saves_more_than_its_calls_cost(f, chunk, cost):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "CHUNK", chunk)
        patch.setattr(blocks, "BLOCK_SCORES", 1 << 40)
        trees = cut(f)
        patch.setattr(blocks, "BLOCK_SCORES", cost)
        found = cut(f)
    assert scores(found) + cost * (len(found) - len(trees)) <= scores(trees)


def test_short_forest_has_one_block_for_each_tree():
    assert cut(build([-1, 0, 0, -1], [30, 40, 40, 20], prompt=50)) == [
        Block(query=(0, 50)),
        Block(query=(50, 158), context=((0, 50),)),
        Block(query=(158, 177), context=((0, 50),)),
    ]


def test_long_branches_attend_to_their_path_only():
    assert cut(build([-1, 0, 0], [500, 501, 501], prompt=50)) == [
        Block(query=(0, 50)),
        Block(query=(50, 550), context=((0, 50),)),
        Block(query=(550, 1050), context=((0, 50), (50, 550))),
        Block(query=(1050, 1550), context=((0, 50), (50, 550))),
    ]


def test_long_branch_computes_few_scores_in_vain():
    f = build([-1, *[0] * 8], [1000, *[1000] * 8], prompt=50)
    needed = sum(range(1, 1051)) + 8 * sum(range(1051, 2050))
    assert needed < scores(cut(f)) < 1.3 * needed


def test_log_probs_and_gradient_do_not_depend_on_the_cut(tmp_path, monkeypatch):
    policy = loading.load(tiny.folder(tmp_path, "smollm"))
    batch = [build([-1, 0, 0, 2, 2, -1], [20, 30, 10, 25, 40, 25], prompt=30), build([-1, -1], [5, 7])]
    results = []
    for chunk, cost in ((512, 1 << 16), (16, 0), (7, 100)):
        monkeypatch.setattr(blocks, "CHUNK", chunk)
        monkeypatch.setattr(blocks, "BLOCK_SCORES", cost)
        packed = packing.pack(batch, packing.pieces(batch, 1000))
        policy.zero_grad()
        out = policy(packed)
        out.sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in policy.parameters()])
        results.append((len(packed.blocks), out.detach(), gradient))
    (few, out, gradient), *others = results
    for number, log_probs, other in others:
        assert number > few
        torch.testing.assert_close(log_probs, out, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(other, gradient, rtol=1e-4, atol=1e-4)
