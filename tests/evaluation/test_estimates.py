"""Tests that pass@k equals its definition, and that intervals contain the true value as often as they claim."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from treeadv.evaluation.estimates import mean_of_means, mean_over, pass_at_k, powers


@given(n=st.integers(1, 7), data=st.data())
def test_pass_at_k_is_the_mean_over_all_choices_of_k_samples(n: int, data: st.DataObject) -> None:
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    choices = list(combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, choices)) / len(choices))


def test_pass_at_k_is_unbiased_for_independent_samples() -> None:
    p, n, k = 0.3, 8, 4
    c = np.random.default_rng(0).binomial(n, p, 40_000)
    assert np.mean([pass_at_k(n, int(x), k) for x in c]) == pytest.approx(1 - (1 - p) ** k, abs=0.005)


def test_ks_are_powers_of_two_and_the_number_of_samples() -> None:
    assert [powers(n) for n in (1, 2, 6, 8)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8]]


def test_intervals_cover_the_true_mean_as_often_as_they_claim() -> None:
    """The test makes 100 evaluations of 40 problems with 4 samples. Solve rates come from a beta distribution of mean
    1/3, and each evaluation draws them anew. A 95 % interval misses the mean in 5 of 100 evaluations on average; 13
    misses are more than three standard errors away."""
    rng = np.random.default_rng(1)
    missed = 0
    for _ in range(100):
        found = mean_over(rng.binomial(4, rng.beta(1, 2, 40)) / 4)
        assert found.interval is not None
        missed += not found.interval[0] <= 1 / 3 <= found.interval[1]
    assert 1 <= missed <= 13


def test_interval_of_equal_problems_is_exact_or_absent() -> None:
    none, every = mean_over([0.0] * 30), mean_over([1.0] * 30)
    assert none.interval == (0.0, pytest.approx(1 - 0.025 ** (1 / 30)))  # the closed form of Clopper and Pearson
    assert every.interval == (pytest.approx(0.025 ** (1 / 30)), 1.0)
    assert mean_over([0.5] * 30).interval is None
    assert mean_over([1.0]).interval is None


def test_mean_of_sets_weighs_each_set_alike() -> None:
    rng = np.random.default_rng(2)
    large, small = rng.random(400), rng.random(20) / 2
    both = mean_of_means([large, small])
    assert both.value == pytest.approx((large.mean() + small.mean()) / 2)
    assert both.interval is not None
    # The textbook gives the variance of the mean of two means. The bootstrap differs from it by at most a fifth.
    error = np.sqrt(large.var(ddof=1) / 400 + small.var(ddof=1) / 20) / 2
    assert both.interval[1] - both.interval[0] == pytest.approx(2 * 1.96 * error, rel=0.2)


def test_mean_with_a_set_without_spread_has_no_interval() -> None:
    assert mean_of_means([[0.0, 0.5, 1.0], [0.0, 0.0, 0.0]]).interval is None
    assert mean_of_means([[0.0, 0.5, 1.0], [0.0, 0.0, 0.5]]).interval is not None
