"""Tests the figures of forests on synthetic forests."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tests.strategies import build
from treeadv.study.forests import forest_figures


def test_figures_of_a_forest_written_out() -> None:
    """The forest has two trees. The first tree forks after 2 tokens into leaves that start with the same token and
    differ in reward."""
    f = build([-1, 0, 0, -1], [2, 3, 3, 5], rewards=[1, 0, 0])
    token = np.array([1, 2, 7, 3, 4, 7, 5, 6, 8, 8, 8, 8, 8], np.int32)
    found = forest_figures([dataclasses.replace(f, token=token)])
    assert (found["trees"], found["leaves"], found["forks"], found["depth_max"]) == (2, 3, 1, 1)
    assert found["sharing"] == pytest.approx(1 - 13 / 15)
    assert (found["duplicate_siblings"], found["fork_decides"], found["fork_position"]) == (1.0, 1.0, 2.0)
    assert found["mixed"] == 1.0 and found["answer_tokens"] == 5.0


def test_correlation_within_trees_is_that_of_the_draws() -> None:
    """Each leaf copies the random bit of its tree with probability 0.6. So two leaves of a tree have a correlation of
    0.36."""
    rng, forests = np.random.default_rng(0), []
    for _ in range(400):
        coins = np.repeat(rng.integers(0, 2, 3), 4)
        reward = np.where(rng.random(12) < 0.6, coins, rng.integers(0, 2, 12))
        f = build([-1, 0, 0, 0, 0, -1, 5, 5, 5, 5, -1, 10, 10, 10, 10], [1] * 15, rewards=reward.tolist())
        forests.append(f)
    found = forest_figures(forests)
    assert found["within_tree"] == pytest.approx(0.36, abs=0.06)
    assert found["effective_leaves"] == pytest.approx(12 / (1 + 3 * 0.36), rel=0.1)


def test_flat_groups_have_no_figures_of_forks() -> None:
    found = forest_figures([build([-1, -1], [2, 3], rewards=[1, 1])])
    assert found["forks"] == 0 and found["within_tree"] is None and found["duplicate_siblings"] is None
    assert found["mixed"] == 0.0
