"""Tests leaves that no verifier judged: no mean includes them, and the gradient is that of the forest without them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from benchmarks.bias import LOST, measure
from benchmarks.tabular import World
from tests.strategies import build, forests
from treeadv.errors import BadForest
from treeadv.forest import Forest, Verdict
from treeadv.learning.advantage import advantages, flow_weights, leaf_advantages, leaf_sum
from treeadv.learning.objective import Objective, evaluate, scales
from treeadv.presets import PRESETS

FAILURES = [Verdict.TIMEOUT, Verdict.CRASH, Verdict.ABORTED]


def failed(f: Forest, which: np.ndarray, verdict: Verdict = Verdict.CRASH) -> Forest:
    """Return the forest with the leaves `which` [L] unjudged. Their reward is extreme, so that a use of it is
    visible."""
    reward = np.where(which, 1000.0, f.reward).astype(np.float32)
    return dataclasses.replace(f, reward=reward, verdict=np.where(which, verdict, f.verdict).astype(np.int8))


@st.composite
def failing_forests(draw: st.DrawFn) -> Forest:
    f = draw(forests(losses=True))
    which = np.array(draw(st.lists(st.booleans(), min_size=f.leaves, max_size=f.leaves)))
    assume(not which.all())
    return failed(f, which, draw(st.sampled_from(FAILURES)))


@pytest.mark.parametrize("verdict", FAILURES)
def test_lost_branch_beside_three_right_ones_has_advantage_0(verdict):
    f = failed(build([-1] * 4, [2] * 4, rewards=[1, 1, 1, 1]), np.array([False, False, True, False]), verdict)
    A, c = advantages(f, PRESETS["treeadv"].advantage)
    assert not A.any() and c.tolist() == [1, 1, 0, 1]


def test_refused_and_unparsed_answers_are_judged():
    f = failed(build([-1, -1], [1, 1], rewards=[1, 0]), np.array([False, True]), Verdict.REFUSED)
    assert f.judged.all() and failed(f, np.array([False, True]), Verdict.UNPARSED).judged.all()


@pytest.mark.parametrize("name", PRESETS)
@given(f=failing_forests(), seed=st.integers(0, 2**32 - 1))
def test_unjudged_leaves_do_not_change_the_gradient(name, f, seed):
    o = Objective(spec=PRESETS[name].advantage, room=20)
    logp = f.logprob + np.random.default_rng(seed).normal(0, 0.1, f.tokens)
    kept, tokens = f.judged_part(), np.repeat(f.judged_below, f.lengths)
    whole, judged = evaluate(f, o, scales([f], o)[0], logp), evaluate(kept, o, scales([kept], o)[0], logp[tokens])
    np.testing.assert_array_equal(whole.loss[tokens], judged.loss)
    np.testing.assert_array_equal(whole.slope[tokens], judged.slope)
    assert not whole.slope[~tokens].any()


@given(failing_forests())
def test_judged_part_is_valid_and_keeps_the_flow_of_each_tree(f):
    kept = f.judged_part().check()
    assert kept.judged.all() and kept.leaves == f.judged.sum()
    np.testing.assert_array_equal(kept.reward, f.reward[f.judged])
    np.testing.assert_allclose(kept.trees * flow_weights(kept), (f.trees * flow_weights(f))[f.judged_below])


def test_judged_part_equals_the_forest_drawn_without_the_leaf():
    parent, lengths = [-1, 0, 0, 2, 2, -1], [2, 3, 1, 2, 4, 5]
    f = failed(build(parent, lengths, rewards=[1, 0, 1, 0]), np.array([False, True, False, False]))
    want = build([-1, 0, 0, 2, -1], [2, 3, 1, 4, 5], rewards=[1, 1, 0], lost={2: 1})
    got = f.judged_part()
    for name in ("parent", "start", "tree", "arity", "leaf_segment", "reward"):
        np.testing.assert_array_equal(getattr(got, name), getattr(want, name))
    assert got.token.tolist() == [*f.token[:6], *f.token[8:]]


@given(failing_forests())
def test_flow_weight_is_the_mass_of_the_judged_leaves(f):
    _, c = advantages(f, PRESETS["unbiased"].advantage)
    mass = leaf_sum(f, np.where(f.judged, flow_weights(f)[f.leaf_segment], 0))
    np.testing.assert_allclose(c / c.max(), mass / mass.max(), atol=1e-12)


@pytest.mark.parametrize("name", PRESETS)
def test_forest_without_a_judged_leaf_has_no_advantage(name):
    f = failed(build([-1, 0, 0], [1, 1, 1]), np.array([True, True]))
    assert not any(x.any() for x in (*advantages(f, PRESETS[name].advantage), leaf_advantages(f, PRESETS[name])))
    with pytest.raises(BadForest, match="no leaf was judged"):
        f.judged_part()


@pytest.mark.parametrize("forests", [600, pytest.param(10_000, marks=pytest.mark.slow)])
def test_unbiased_stays_unbiased_with_a_fifth_of_leaves_lost(forests):
    """`error` is the root mean square of `bias` for an unbiased estimator."""
    unbiased = {"unbiased": PRESETS["unbiased"].advantage}
    rows = [row for seed in range(1, 6) for row in measure(World.random(0), "entropy", unbiased, forests, seed, LOST)]
    assert np.sqrt(np.mean([(row["bias"] / row["error"]) ** 2 for row in rows])) < 1.5
