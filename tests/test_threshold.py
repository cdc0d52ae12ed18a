"""Tests that the fork threshold depends on the entropies of a window of forests and not of a single forest."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from treeadv.config import SamplingConfig
from treeadv.sampling.threshold import EDGES, Threshold

BIN = EDGES[1] / EDGES[0]  # ratio of two adjacent bin edges


def quantile(q: float, **settings: int) -> Threshold:
    return Threshold(SamplingConfig(tau=1.0, tau_quantile=q, **settings))


def test_fixed_threshold_does_not_move():
    t = Threshold(SamplingConfig(tau=0.3))
    t.observe(np.full(10_000, 5.0))
    assert t.tau == 0.3


def test_tau_holds_until_the_window_has_enough_tokens():
    t = quantile(0.5, tau_min_tokens=100)
    t.observe(np.full(99, 3.0))
    assert t.tau == 1.0
    t.observe(np.full(1, 3.0))
    assert t.tau == pytest.approx(3.0, rel=BIN - 1)


@given(st.lists(st.lists(st.floats(0.001, 30.0), min_size=1, max_size=50), min_size=1, max_size=12), st.floats(0, 1))
def test_tau_is_the_quantile_of_the_window_to_one_bin(forests: list[list[float]], q: float):
    t = quantile(q, tau_min_tokens=1, tau_window=4)
    for entropy in forests:
        t.observe(np.array(entropy))
    newest = np.concatenate([np.array(e) for e in forests[-4:]])
    exact = float(np.quantile(newest, q, method="inverted_cdf"))
    assert exact <= t.tau * (1 + 1e-9)
    assert t.tau <= exact * BIN * (1 + 1e-9)


def test_one_tiny_forest_a_version_does_not_move_tau():
    """Each version has one forest of 30 tokens with high entropies, alone or with three other forests. This forest must
    not determine tau for the next version, so every later forest still finds tokens at which it can fork."""
    rng = np.random.default_rng(0)
    t = quantile(0.8)
    for _ in range(64):
        t.observe(rng.gamma(1.0, 0.2, 200))
    before = t.tau
    t.observe(np.full(30, 2.0))
    assert t.tau == pytest.approx(before, rel=0.03)
    for _ in range(12):
        others = [rng.gamma(1.0, 0.2, 200) for _ in range(3)]
        for entropy in others:
            assert 0.1 < np.mean(entropy > t.tau) < 0.3
            t.observe(entropy)
        t.observe(np.full(30, 2.0))
    assert t.tau == pytest.approx(before, rel=0.2)


def test_tiny_forests_alone_do_not_set_tau():
    """At the start of a run every version has one forest of 30 tokens. The value of sampling.tau stays in effect for 33
    such forests."""
    t = quantile(0.5)
    for _ in range(33):
        assert t.tau == 1.0
        t.observe(np.full(30, 2.0))


def test_tau_follows_the_policy_once_the_window_has_passed():
    t = quantile(0.5, tau_window=8)
    for nats in (0.2, 2.0):
        for _ in range(8):
            t.observe(np.full(500, nats))
        assert t.tau == pytest.approx(nats, rel=BIN - 1)
