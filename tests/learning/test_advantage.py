"""Tests exact identities of advantages and weights; test_bias.py tests the bias against a known gradient."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.strategies import build, forests
from treeadv import config as configuration
from treeadv.errors import BadForest, BadInput
from treeadv.forest import Forest
from treeadv.learning.advantage import (
    advantages,
    flow_weights,
    leaf_advantages,
    leaf_sum,
    path_sum,
    values,
)
from treeadv.presets import PRESETS, AdvantageOverrides, AdvantageSpec, Preset, build_advantage

WORKED = dataclasses.replace(
    build([-1, 0, 0, 2, 2, -1], [2, 3, 1, 2, 4, 5], rewards=[1, 0, 1, 0]), budget=np.array([3, 1, 2, 1, 1, 3], np.int32)
)
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def spec(**changes) -> AdvantageSpec:
    return AdvantageSpec(**{"eps": 0.0, **changes})


# ---- the worked example ----------------------------------------------------------------------------------------------
def test_sizes_equal_the_worked_example():
    assert (WORKED.tokens, WORKED.expanded_tokens) == (17, 22)


@pytest.mark.parametrize(("scale", "size"), [("std_pop", 1.0), ("std_unbiased", 0.8660254)])
def test_leaf_advantages_equal_the_worked_example(scale, size):
    flat = spec(credit="leaf", weight="per_leaf", scale=scale)
    np.testing.assert_allclose(leaf_advantages(WORKED, flat), np.array([1, -1, 1, -1]) * size, rtol=1e-7)


def test_leaf_mean_equals_the_worked_example():
    A, c = advantages(WORKED, spec(scale="std_pop"))
    np.testing.assert_allclose(A, [1 / 3, 1, 0, -1, 1, -1], **EXACT)
    np.testing.assert_array_equal(c, np.ones(6))


def test_flow_equals_the_worked_example():
    np.testing.assert_allclose(flow_weights(WORKED), [1 / 2, 1 / 4, 1 / 4, 1 / 8, 1 / 8, 1 / 2], **EXACT)


def test_child_mean_baselines_equal_the_worked_example():
    V = values(WORKED, PRESETS["unbiased"].advantage)
    np.testing.assert_allclose(V, [0.75, 1, 0.5, 0, 1, 0], **EXACT)
    A, c = advantages(WORKED, PRESETS["unbiased"].advantage)
    np.testing.assert_allclose(A, [0.75, 5 / 6, 1 / 6, -3 / 7, 5 / 7, -0.75], **EXACT)
    np.testing.assert_allclose(c, 2 * flow_weights(WORKED), **EXACT)


def test_topup_roots_do_not_change_trees_that_could_fork():
    """The number of top-up roots depends on the tokens of trees that could fork. A top-up root is compared with all
    trees."""
    up = [-1, 0, 0, -1, -1, -1]
    f = dataclasses.replace(build(up, [1] * 6, rewards=[1, 0, 1, 0, 0]), budget=np.array([4, 2, 2, 4, 1, 1], np.int32))
    A, c = advantages(f, PRESETS["unbiased"].advantage)
    root = (0.5 + 1 + 0) / 3  # mean of the other trees for a top-up root
    np.testing.assert_allclose(
        A, [0.5 - 1, 1 - (0 / 2 + 1) / 1.5, 0 - (1 / 2 + 1) / 1.5, 1 - 0.5, -root, -root], **EXACT
    )
    np.testing.assert_allclose(c, [1, 0.5, 0.5, 1, 1, 1], **EXACT)


def test_weights_equal_the_worked_example():
    for weight, want in {"once": [1] * 6, "per_leaf": [3, 1, 2, 1, 1, 1], "sqrt": [3**0.5, 1, 2**0.5, 1, 1, 1]}.items():
        np.testing.assert_allclose(advantages(WORKED, spec(weight=weight))[1], want, **EXACT)


def test_other_presets_equal_the_worked_example():
    """The numbers are computed by hand. The values V are the means of the leaves below: a0 2/3, a1 1, a2 1/2, a3 0, a4
    1, b0 0. The mean over leaves is 1/2, and the unbiased standard deviation is 0.57735."""
    mu = (2 / 3 + 1 + 1 / 2 + 0 + 1) / 5
    seed = (np.array([2 / 3, 1, 1 / 2, 0, 1, 0]) - [mu, mu, mu, mu, mu, 0]) / 3**-0.5
    np.testing.assert_allclose(advantages(WORKED, PRESETS["seed_rebuttal"].advantage)[0], seed, rtol=1e-5)
    spo = [0.75 - 0.375, 1 - 0.75, 0.5 - 0.75, 0 - 0.5, 1 - 0.5, 0 - 0.375]
    np.testing.assert_allclose(advantages(WORKED, PRESETS["spo_tree"].advantage)[0], spo, **EXACT)
    # z over the forest is +-0.8660. z inside the tree is added. Tree A has rewards 1, 0, 1 (mean 2/3, std 0.57735).
    # Tree B has a single leaf, so its z is 0
    z = np.array([0.8660254, -0.8660254, 0.8660254, -0.8660254]) + np.array([0.5773503, -1.1547005, 0.5773503, 0])
    np.testing.assert_allclose(leaf_advantages(WORKED, PRESETS["tree_grpo"].advantage), z, rtol=1e-5)
    # TreePO: mean over forest and shared segments of R - mean: a1 (1/2 + 1/3)/2, a3 (-1/2 - 2/3 - 1/2)/3, a4 (1/2 + 1/3
    # + 1/2)/3, b0 -1/2
    raw = np.array([5 / 12, -5 / 9, 4 / 9, -1 / 2])
    w = np.array([5, 5, 7, 5]) / 22
    white = (raw - w @ raw) / np.sqrt(w @ (raw - w @ raw) ** 2)
    np.testing.assert_allclose(leaf_advantages(WORKED, PRESETS["treepo"].advantage), white, rtol=1e-5)


def test_treerl_equals_the_worked_example():
    """The leave-one-out values of the leaves are 2/3, -2/3, 2/3, -2/3. The value of a node is divided by sqrt(K). The
    local term is the value minus that of the parent, and the global term is the value."""
    V = np.array([2 / 9, 2 / 3, 0, -2 / 3, 2 / 3, -2 / 3]) / np.sqrt([3, 1, 2, 1, 1, 1])
    parent = np.array([0, V[0], V[0], V[2], V[2], 0])
    A, c = advantages(WORKED, PRESETS["treerl"].advantage)
    np.testing.assert_allclose(A * c / WORKED.leaf_count, (V - parent) + V, **EXACT)


# ---- exact identities ------------------------------------------------------------------------------------------------
@given(forests())
def test_per_leaf_segments_weigh_tokens_as_flat_grpo(f):
    """The sum of A_l over the K leaves of a token is K times the advantage of its segment. So the gradients at ratio 1
    with a constant normaliser are equal."""
    A, c = advantages(f, PRESETS["treeadv_per_leaf"].advantage)
    own = leaf_advantages(f, PRESETS["flat_on_forest"].advantage)
    for s in range(f.segments):
        under = [leaf for leaf in range(f.leaves) if s in f.path(int(f.leaf_segment[leaf]))]
        assert c[s] * A[s] == pytest.approx(sum(own[under]), abs=1e-9)


@given(forests())
def test_flow_weights_sum_to_one_over_every_cut(f):
    w = flow_weights(f)
    assert w[f.leaf_segment].sum() == pytest.approx(1)
    for depth in range(int(f.depth.max()) + 1):
        cut = (f.depth == depth) | ((f.depth < depth) & (f.arity == 0))
        assert w[cut].sum() == pytest.approx(1)
    np.testing.assert_allclose(leaf_sum(f, w[f.leaf_segment]), w, **EXACT)


@given(forests(losses=True))
def test_flow_of_a_lost_branch_is_not_redistributed(f):
    w = flow_weights(f)
    for s in range(f.segments):
        if f.children[s]:
            assert sum(w[list(f.children[s])]) == pytest.approx(w[s] * len(f.children[s]) / f.arity[s])


@given(forests(max_trees=1))
def test_root_segment_of_a_single_tree_has_advantage_0(f):
    assert advantages(f, PRESETS["treeadv"].advantage)[0][0] == pytest.approx(0, abs=1e-6)


@given(st.integers(1, 3), st.integers(2, 3), st.integers(0, 3), st.integers(0, 2**32 - 1))
def test_equal_arity_makes_leaf_and_child_means_equal(trees, fan, depth, seed):
    parent: list[int] = []

    def grow(up: int, left: int) -> None:
        parent.append(up)
        segment = len(parent) - 1
        for _ in range(fan if left else 0):
            grow(segment, left - 1)

    for _ in range(trees):
        grow(-1, depth)
    f = build(parent, [1] * len(parent), seed=seed)
    np.testing.assert_allclose(values(f, spec()), values(f, spec(value="child_mean")), **EXACT)
    np.testing.assert_allclose(f.leaf_count / f.leaves, flow_weights(f), **EXACT)


@pytest.mark.parametrize("name", PRESETS)
@given(st.lists(st.integers(1, 5), min_size=2, max_size=8), st.integers(0, 2**32 - 1))
def test_every_preset_is_grpo_without_forks(name, lengths, seed):
    """TreePO equals GRPO up to shift and scale, because it whitens over tokens. The advantages of `seed_rebuttal` are
    0, because every tree has one segment."""
    f = build([-1] * len(lengths), lengths, seed=seed)
    assume(np.ptp(f.reward) > 0)
    A, c = advantages(f, PRESETS[name].advantage)
    grpo = (f.reward - f.reward.mean()) / f.reward.std(ddof=1)
    np.testing.assert_allclose(c, 1, **EXACT)
    if name == "seed_rebuttal":
        np.testing.assert_allclose(A, 0, atol=1e-9)
    elif name == "treepo":
        np.testing.assert_allclose(np.diff(A) / np.ptp(A), np.diff(grpo) / np.ptp(grpo), rtol=1e-9, atol=1e-9)
    else:
        np.testing.assert_allclose(A / np.abs(A).max(), grpo / np.abs(grpo).max(), rtol=1e-5)
    if PRESETS[name].advantage.scale == "std_unbiased" and name != "seed_rebuttal":
        np.testing.assert_allclose(A, grpo, rtol=1e-4)


@pytest.mark.parametrize("value", ["leaf_mean", "child_mean"])
@given(f=forests())
def test_parent_fork_advantages_sum_to_the_reward(value, f):
    how = spec(value=value, baseline="parent_fork", scale="none")
    total = path_sum(f, advantages(f, how)[0])[f.leaf_segment]
    np.testing.assert_allclose(total, f.reward - f.reward.mean(dtype=np.float64), rtol=1e-9, atol=1e-9)


# ---- properties ------------------------------------------------------------------------------------------------------
@given(forests(losses=True), st.integers(0, 2**32 - 1))
def test_path_and_subtree_sums_equal_recursive_sums(f, seed):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=f.segments), rng.normal(size=f.leaves)
    np.testing.assert_allclose(path_sum(f, x), [x[f.path(s)].sum() for s in range(f.segments)], rtol=1e-9, atol=1e-9)
    paths = [set(f.path(int(s))) for s in f.leaf_segment]
    walked = [sum(y[leaf] for leaf in range(f.leaves) if s in paths[leaf]) for s in range(f.segments)]
    np.testing.assert_allclose(leaf_sum(f, y), walked, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("value", ["leaf_mean", "child_mean"])
@given(f=forests(losses=True))
def test_values_equal_their_definition(value, f):
    V = values(f, spec(value=value))
    reward = dict(zip(f.leaf_segment.tolist(), f.reward.tolist(), strict=True))

    def leaves(s: int) -> list[float]:
        return [reward[s]] if not f.children[s] else [r for c in f.children[s] for r in leaves(c)]

    def child_mean(s: int) -> float:
        return reward[s] if not f.children[s] else float(np.mean([child_mean(c) for c in f.children[s]]))

    want = [np.mean(leaves(s)) if value == "leaf_mean" else child_mean(s) for s in range(f.segments)]
    np.testing.assert_allclose(V, want, rtol=1e-9, atol=1e-12)


@given(forests(losses=True))
def test_leave_subtree_out_compares_with_the_mean_elsewhere(f):
    """The baseline of a tree that could fork is the mean of the other trees that could fork."""
    A, _ = advantages(f, PRESETS["unbiased"].advantage)
    V, w = values(f, PRESETS["unbiased"].advantage), flow_weights(f)[f.leaf_segment]
    for s in range(f.segments):
        budget = f.budget[f.parent < 0]
        outside = (budget[f.tree[f.leaf_segment]] > 1) | (budget[f.tree[s]] == 1)
        outside[list(f.segment(s).leaves)] = False
        b = np.average(f.reward[outside], weights=w[outside]) if outside.any() else 0.0
        assert A[s] == pytest.approx(V[s] - b, abs=1e-9)


@pytest.mark.parametrize("name", PRESETS)
@given(f=forests(losses=True), constant=st.sampled_from([0.0, 0.1, 1.0]))
def test_equal_rewards_give_no_advantage_and_no_nan(name, f, constant):
    A, c = advantages(dataclasses.replace(f, reward=np.full(f.leaves, constant, np.float32)), PRESETS[name].advantage)
    assert np.isfinite(A).all() and (c > 0).all()
    baseline, could = PRESETS[name].advantage.baseline, (f.budget > 1) & (f.parent < 0)
    alone = {"leave_subtree_out": True, "leaf_loo": f.leaves == 1, "sibling_loo": f.trees == 1 or could.sum() == 1}
    if not alone.get(baseline, False):
        assert not A.any()
    elif (f.budget[f.parent < 0] > 1).sum() != 1 and f.trees > 1:
        np.testing.assert_allclose(A, 0, atol=1e-7)


@pytest.mark.parametrize("value", ["leaf_mean", "child_mean"])
@pytest.mark.parametrize("leaf_weight", ["uniform", "flow"])
@given(f=forests(losses=True))
def test_leaf_loo_leaves_out_one_leaf(value, leaf_weight, f):
    """The baseline of each leaf is the weighted mean of the other leaves. The advantage of a segment is the mean over
    its leaves."""
    assume(f.leaves > 1)
    choices = spec(baseline="leaf_loo", scale="none", value=value, leaf_weight=leaf_weight)
    u = flow_weights(f)[f.leaf_segment] if leaf_weight == "flow" else np.ones(f.leaves)
    own = [
        r - np.average(np.delete(f.reward, i).astype(float), weights=np.delete(u, i))
        for i, r in enumerate(f.reward.astype(float))
    ]
    assume(np.ptp(f.reward) > 0)
    np.testing.assert_allclose(advantages(f, choices)[0], values(f, choices, np.array(own)), rtol=1e-9, atol=1e-9)
    flattened = spec(baseline="leaf_loo", scale="none", credit="leaf", weight="per_leaf", leaf_weight=leaf_weight)
    np.testing.assert_allclose(leaf_advantages(f, flattened), own, rtol=1e-9, atol=1e-9)


def ungraded(f: Forest) -> Forest:
    return dataclasses.replace(f, verdict=np.full(f.leaves, -1, np.int8))


def test_forest_that_is_not_graded_is_refused_with_its_id():
    with pytest.raises(BadForest, match=r"forest f: not graded"):
        advantages(ungraded(WORKED), PRESETS["treeadv"].advantage)


def test_unknown_preset_names_the_nearest_and_all_others():
    with pytest.raises(
        BadInput, match=r"preset=treadv is unknown, did you mean treeadv\? \(use treeadv, .*cispo or module:Name"
    ):
        build_advantage("treadv")


@pytest.mark.parametrize(
    ("name", "changes", "text"),
    [
        ("grpo", {"weight": "once"}, "credit=leaf is the flattened form"),
        ("grpo", {"baseline": "parent_fork"}, "baseline=parent_fork does not go with credit=leaf"),
        ("treeadv", {"scale": "whiten"}, "scale=whiten is over the flattened tokens"),
    ],
)
def test_overrides_that_do_not_go_together_are_refused(name, changes, text):
    with pytest.raises(BadInput, match=text) as e:
        build_advantage(name, AdvantageOverrides(**changes))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("learner.advantage.clipp=1", r"unknown key learner.advantage.clipp, did you mean learner.advantage.clip\?"),
        ("learner.advantage.value=mean", "learner.advantage.value: Input should be 'leaf_mean'"),
        ("learner.advantage.clip=[0.2]", "learner.advantage.clip.*: Field required"),
        ("learner.advantage.max_prob=2", "learner.advantage.max_prob: Input should be less than or equal to 1"),
    ],
)
def test_bad_override_in_the_configuration_is_one_line(override, text):
    with pytest.raises(BadInput, match=text) as e:
        configuration.build({"task": {"families": [{"name": "chain_sum"}]}}, [override], "test")
    assert "\n" not in str(e.value)


def test_overrides_replace_fields_of_the_preset():
    asymmetric = build_advantage("treeadv", AdvantageOverrides(clip=(0.2, 0.28)))
    assert asymmetric == PRESETS["treeadv"].advantage.model_copy(update={"clip": (0.2, 0.28)})


def test_every_choice_can_be_overridden_and_is_optional():
    assert list(AdvantageOverrides.model_fields) == list(AdvantageSpec.model_fields)
    assert AdvantageOverrides().model_dump(exclude_none=True) == {}


OWN = Preset(advantage=AdvantageSpec(weight="sqrt"))


def test_preset_of_another_module_is_found_by_name():
    assert build_advantage("tests.learning.test_advantage:OWN").weight == "sqrt"
    with pytest.raises(BadInput, match=r"is a Forest, not a treeadv.presets.Preset"):
        build_advantage("tests.learning.test_advantage:WORKED")
