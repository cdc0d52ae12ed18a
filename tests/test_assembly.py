"""Tests the construction of forests from a tree, and from flat rollouts whose equal prefixes are merged."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import forests
from treeadv.errors import BadForest
from treeadv.forest import Finish, Forest
from treeadv.forest.prefixes import prefix_order

rollouts = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=8)


def merged(sequences: list[list[int]]) -> tuple[Forest, list[int]]:
    logprobs = [[-1.0 - 0.1 * k for k in range(len(s))] for s in sequences]
    return Forest.from_rollouts([1], sequences, logprobs), prefix_order(sequences)


@given(rollouts)
def test_every_rollout_is_a_leaf_with_its_tokens(sequences: list[list[int]]) -> None:
    forest, order = merged(sequences)
    assert sorted(order) == list(range(len(sequences)))
    assert [forest.leaf_tokens(i).tolist() for i in range(forest.leaves)] == [sequences[i] for i in order]
    assert forest.expanded_tokens == sum(map(len, sequences))


@given(rollouts)
def test_prefixes_before_last_tokens_are_stored_once(sequences: list[list[int]]) -> None:
    forest, _ = merged(sequences)
    prefixes = {tuple(s[:k]) for s in sequences for k in range(1, len(s))}
    assert forest.tokens == len(prefixes) + len(sequences)


@given(forests())
def test_merged_leaves_of_a_forest_take_no_more_tokens(f: Forest) -> None:
    sequences = [f.leaf_tokens(i).tolist() for i in range(f.leaves)]
    forest, _ = merged(sequences)
    assert forest.tokens <= f.tokens


def test_merged_forest_keeps_leaf_order_and_is_not_predictable() -> None:
    ends = [Finish.STOP, Finish.LENGTH, Finish.STOP]
    sequences = [[5, 6], [7], [5, 8]]
    forest = Forest.from_rollouts([1], sequences, [[-1.0, -2.0], [-3.0], [-4.0, -5.0]], finish=ends)
    assert prefix_order(sequences) == [0, 2, 1]
    assert forest.finish.tolist() == [Finish.STOP, Finish.STOP, Finish.LENGTH]
    assert forest.logprob.tolist() == [-1.0, -2.0, -5.0, -3.0]
    assert (forest.rule, forest.predictable) == ("merged", False)


def test_empty_rollout_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        Forest.from_rollouts([1], [[1], []], [[-1.0], []])


def test_assembled_forest_counts_budgets_and_arity_from_the_tree() -> None:
    forest = Forest.assemble(
        prompt=[1], parent=[-1, 0, 0, 2, 2, -1], lengths=[1] * 6, token=[3] * 6, logprob=[-1.0] * 6
    )
    assert forest.budget.tolist() == [3, 1, 2, 1, 1, 1]
    assert forest.arity.tolist() == [2, 0, 2, 0, 0, 0]
    assert not forest.graded and np.isnan(forest.reward).all()


def test_assembled_forest_that_is_no_tree_is_refused() -> None:
    with pytest.raises(BadForest, match="parent must stand before its children"):
        Forest.assemble(prompt=[1], parent=[-1, 2, 0], lengths=[1] * 3, token=[3] * 3, logprob=[-1.0] * 3)
