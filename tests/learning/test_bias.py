"""Tests the bias on a tabular policy with a known gradient. The preset `unbiased` has no bias; forks on surprisal have
a bias.

The slow tests use more forests (`make test-slow`). `python -m benchmarks.bias` prints all figures.
"""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.bias import Case, draw, measure, rows
from benchmarks.tabular import LEAVES, STEPS, TOKENS, World, child
from benchmarks.tabular_search import grow_by_search, state_after
from treeadv.config import SamplingConfig
from treeadv.presets import PRESETS

UNBIASED = {"unbiased": PRESETS["unbiased"].advantage}


@pytest.mark.parametrize("stops", [False, True])
def test_exact_gradient_equals_finite_differences(stops):
    world = World.random(3, stops)
    logits = np.log(world.prob)

    def value(x: np.ndarray) -> float:
        prob = np.exp(x) / np.exp(x).sum(1, keepdims=True)

        def below(state: int) -> float:
            if state >= len(prob) or (stops and state % TOKENS == 1):  # token 0 was the last token
                return world.reward[state]
            return sum(prob[state, a] * below(child(state, a)) for a in range(TOKENS))

        return below(0)

    for state, a in [(0, 0), (2, 1), (7, 2), (30, 0)]:
        step = np.zeros_like(logits)
        step[state, a] = 1e-5
        assert world.gradient[state, a] == pytest.approx((value(logits + step) - value(logits - step)) / 2e-5, abs=1e-8)


@pytest.mark.parametrize("truncated", ["graded", "masked", "penalty"])
def test_treatment_of_truncated_leaves_follows_its_own_gradient(truncated):
    """The estimate of `graded` and `penalty` equals the gradient within the error. `masked` is a ratio of two means.
    Its bias against its own gradient is far smaller than against the gradient of the grade."""
    world = World.random(0, stops=True)
    case = Case(rule="no topup", specs=UNBIASED, truncated=truncated)
    (row,) = rows(world, case, draw(world, case, 1500, np.random.default_rng(1)))
    if truncated == "masked":
        assert row["own_bias"] < 0.5 * row["bias"]
    else:
        assert row["own_bias"] < 1.5 * row["error"]


@pytest.mark.parametrize("forests", [600, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("rule", ["entropy", "random", "no topup"])
def test_preset_unbiased_equals_the_exact_gradient(rule, forests):
    """Direction and size agree within the Monte-Carlo error, although the number of top-up roots depends on the forks.

    `error` is the root mean square of `bias` for an unbiased estimator. So the test compares it with the root mean
    square of `bias` over independent draws.
    """
    rows = [row for seed in range(1, 6) for row in measure(World.random(0), rule, UNBIASED, forests, seed)]
    assert np.sqrt(np.mean([(row["bias"] / row["error"]) ** 2 for row in rows])) < 1.5
    assert all(row["scale"] == pytest.approx(row["trees"] / LEAVES, rel=3 * row["error"]) for row in rows)
    assert all(row["trees"] == 2 if rule == "no topup" else row["trees"] > 3 for row in rows)


def test_forks_on_surprisal_bias_the_comparison_of_actions():
    """The bias that no weighting of the states explains (A-bias) is far above the Monte-Carlo error."""
    (row,) = measure(World.random(1), "surprisal", UNBIASED, 4000, seed=1)
    assert row["state"] > 3 * row["error"] and row["state"] > 0.08


def test_weight_once_biases_states_and_not_actions():
    """`unbiased` with weight once is biased if all states share one scale. With a scale for each state the bias is
    within the error (S-bias)."""
    changed = PRESETS["unbiased"].advantage.model_copy(update={"weight": "once"})
    (row,) = measure(World.random(1), "entropy", {"once": changed}, 2000, seed=1)
    assert row["bias"] > 4 * row["error"] and row["state"] < 1.5 * row["error"]


@pytest.mark.parametrize("by", ["uniform", "entropy", "ucb"])
def test_search_grows_graded_forests_of_the_tabular_policy(by):
    """The reward of each leaf is that of its tokens, each token has its probability, and no root is added."""
    world = World.random(0)
    options = {"leaves": LEAVES, "trees": 2, "min_gap": 1, "min_tail": 1, "max_depth": 4, "max_tokens": STEPS}
    sampling = SamplingConfig(**options, rule="search", rule_options={"by": by})
    for seed in range(20):
        forest, states = grow_by_search(world, sampling, np.random.default_rng(seed))
        assert (forest.leaves, forest.trees) == (LEAVES, 2)
        assert forest.logprob == pytest.approx(np.log(world.prob[states, forest.token]), abs=1e-5)
        ends = [state_after(forest.leaf_tokens(leaf)) for leaf in range(forest.leaves)]
        assert forest.reward.tolist() == world.reward[ends].tolist()
