"""Advantages on a forest (docs/method.md): from leaf rewards to one advantage A and one loss weight c for each segment.

Notation: L(s) leaves under segment s, K = |L(s)|, N leaves, M trees, R rewards. All sums over subtrees are
differences of prefix sums over the leaves and all sums over paths are prefix sums over the Euler order: O(S), no
recursion."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from treeadv.errors import BadForest
from treeadv.forest import Forest
from treeadv.presets import AdvantageSpec

Array = npt.NDArray[np.float64]


# ---- sums over the tree ----------------------------------------------------------------------------------------------
def path_sum(f: Forest, x: npt.ArrayLike) -> Array:
    """[S] sum of x [S] over the path from the root to each segment, both included: add on entering a subtree, take
    off on leaving."""
    x = np.asarray(x, np.float64)
    steps = np.zeros(f.segments + 1)
    steps[:-1] = x
    np.subtract.at(steps, f.subtree_end, x)
    return np.cumsum(steps[:-1])


def leaf_sum(f: Forest, y: npt.ArrayLike) -> Array:
    """[S] sum of y [L] over the leaves under each segment."""
    total = np.concatenate([[0.0], np.cumsum(np.asarray(y, np.float64))])
    return total[f.leaf_begin + f.leaf_count] - total[f.leaf_begin]


def flow_weights(f: Forest) -> Array:
    """[S] w(root) = 1/M, w(child) = w(parent) / arity(parent): the probability mass that a segment stands for.

    Arity is as drawn, so that a lost branch takes its mass with it instead of giving it to its siblings.
    """
    log_arity = np.log(np.maximum(f.arity, 1))
    return np.exp(log_arity - path_sum(f, log_arity)) / f.trees


# ---- values, baselines, scales ---------------------------------------------------------------------------------------
def values(f: Forest, spec: AdvantageSpec, reward: Array | None = None) -> Array:
    """[S] V(s): the mean of the rewards [L] of its leaves, or the mean of V over its children, which count alike."""
    reward = f.reward.astype(np.float64) if reward is None else reward
    if spec.value == "leaf_mean":
        return leaf_sum(f, reward) / f.leaf_count
    kids = np.bincount(f.parent[f.parent >= 0], minlength=f.segments)
    log_kids = np.log(np.maximum(kids, 1))
    vote = np.exp(log_kids - path_sum(f, log_kids))  # share of the root's value that a segment decides
    return leaf_sum(f, vote[f.leaf_segment] * reward) / vote


def _leaf_weights(f: Forest, spec: AdvantageSpec) -> Array:
    """[L] weights of the leaves in mean and standard deviation; they sum to 1."""
    w = flow_weights(f)[f.leaf_segment] if spec.leaf_weight == "flow" else np.ones(f.leaves)
    return w / w.sum()


def _spread(f: Forest, spec: AdvantageSpec, weights: Array) -> float:
    """Standard deviation of the rewards; the unbiased one divides the variance by 1 - sum w^2, which is (N-1)/N for
    equal weights."""
    if spec.scale == "none":
        return 1.0
    mean = weights @ f.reward
    variance = float(weights @ (f.reward - mean) ** 2)
    left = 1.0 - float(weights @ weights)
    if spec.scale == "std_unbiased":
        variance = variance / left if f.leaves > 1 else 0.0
    return float(np.sqrt(variance)) + spec.eps


def _baseline(f: Forest, spec: AdvantageSpec, V: Array) -> Array | float:
    """[S] what each value is compared with."""
    weights = _leaf_weights(f, spec)
    mean = float(weights @ f.reward)
    if spec.baseline == "none":
        return 0.0
    if spec.baseline == "leaf_loo":
        return V - values(f, spec, _leave_one_out(f, weights))
    if spec.baseline == "leave_subtree_out":
        # How many fresh roots (budget 1) top a forest up depends on the tokens of trees that could fork: compare those
        # among themselves.
        could = (f.budget[f.parent < 0] > 1)[f.tree]
        return np.where(could, _outside(f, weights * could[f.leaf_segment]), _outside(f, weights))
    if spec.baseline == "sibling_loo":
        return _siblings(f, V)
    if spec.baseline == "parent_fork":
        return np.where(f.parent < 0, mean, V[f.parent])
    if spec.baseline == "segment_mean":
        return (np.bincount(f.tree, V) / np.bincount(f.tree))[f.tree]
    return mean


def _siblings(f: Forest, V: Array) -> Array:
    """[S] the mean of V over the siblings of a segment; where all were lost, that of its parent. A root is compared
    with the other roots: one that could fork with those that could, one with nothing to compare with 0."""
    could = f.budget > 1
    total = np.bincount(f.parent + 1, V * (f.parent >= 0), f.segments + 1)  # by parent; roots are left out
    count = np.bincount(f.parent + 1, f.parent >= 0, f.segments + 1)
    out = np.zeros(f.segments)
    for s, p in enumerate(f.parent):
        if p >= 0:
            out[s] = (total[p + 1] - V[s]) / (count[p + 1] - 1) if count[p + 1] > 1 else out[p]
            continue
        others = (f.parent < 0) & (np.arange(f.segments) != s) & (could | (not could[s]))
        out[s] = V[others].mean() if others.any() else 0.0
    return out


def branch_steps(f: Forest, spec: AdvantageSpec) -> Array:
    """[S] what `branch_td` adds to the advantages of a segment's first token: (V(s) - V(parent)) / spread, with the
    mean of the rewards for the parent of a root (TEMPO, 2509.18314). A forest of equal rewards has 0."""
    if _all_equal(f, spec):
        return np.zeros(f.segments)
    weights = _leaf_weights(f, spec)
    V = values(f, spec)
    above = np.where(f.parent < 0, float(weights @ f.reward), V[f.parent])
    return spec.branch_td * (V - above) / _spread(f, spec, weights)


def _leave_one_out(f: Forest, weights: Array) -> Array:
    """[L] R_i minus the mean of the other leaves under `weights` [L], which sum to 1; R_i where there is no other
    leaf."""
    reward = f.reward.astype(np.float64)
    if f.leaves == 1:
        return reward
    return (reward - weights @ reward) / (1.0 - weights)  # R_i - (mean - u_i R_i) / (1 - u_i)


def _outside(f: Forest, weights: Array) -> Array:
    """[S] the mean reward, under `weights` [L], of the leaves that are not under a segment; 0 where all that weigh
    are."""
    alone = leaf_sum(f, weights > 0) == np.count_nonzero(weights)
    inside = leaf_sum(f, weights * f.reward), leaf_sum(f, weights)
    return np.where(alone, 0.0, (weights @ f.reward - inside[0]) / np.where(alone, 1.0, weights.sum() - inside[1]))


def _copies(f: Forest, spec: AdvantageSpec) -> Array:
    """[S] c(s): how often the loss counts a token of the segment."""
    if spec.weight == "flow":
        # The mass of the leaves that exist, times M: without losses 1 for every root, however many roots topped the
        # forest up.
        # A segment keeps only the mass of the leaves that it did not lose, so that states with many leaves weigh no
        # more than others.
        return f.trees * leaf_sum(f, flow_weights(f)[f.leaf_segment])
    power = {"once": 0.0, "per_leaf": 1.0, "sqrt": 0.5}[spec.weight]
    return f.leaf_count.astype(np.float64) ** power


# ---- what the objective asks for -------------------------------------------------------------------------------------
def advantages(f: Forest, spec: AdvantageSpec) -> tuple[Array, Array]:
    """(A [S], c [S]) of a graded forest: the advantage of each segment's tokens and how often the loss counts them.

    Under credit=leaf, A is the mean of the leaves' own advantages, which the flattened loss applies one by one.
    Leaves that no verifier judged take part in no mean; a segment without a judged leaf has A = c = 0. `BadForest`
    if the forest is not graded."""
    if not f.graded:
        raise BadForest(f.forest_id, "it is not graded: advantages need a reward for every leaf")
    if not f.judged.all():
        return _scattered(f, spec)
    c = _copies(f, spec)
    if spec.credit == "leaf":
        return leaf_sum(f, leaf_advantages(f, spec)) / f.leaf_count, c
    if _all_equal(f, spec):
        return np.zeros(f.segments), c
    V = values(f, spec)
    A = V - _baseline(f, spec, V)
    if spec.local:
        # Each of the K copies of a token adds A c / K: TreeRL takes the step over the fork between values so weighed.
        copy = A * c / f.leaf_count
        A = A + spec.local * (copy - np.where(f.parent < 0, 0.0, copy[f.parent])) * f.leaf_count / c
    return A / _spread(f, spec, _leaf_weights(f, spec)), c


def _scattered(f: Forest, spec: AdvantageSpec) -> tuple[Array, Array]:
    """(A [S], c [S]) of the judged part, at the places of its segments in the whole forest."""
    A, c = np.zeros(f.segments), np.zeros(f.segments)
    if f.judged.any():
        A[f.judged_below], c[f.judged_below] = advantages(f.judged_part(), spec)
    return A, c


def leaf_advantages(f: Forest, spec: AdvantageSpec) -> Array:
    """[L] the own advantage of each leaf, for credit=leaf (GRPO, GSPO, TreePO, Tree-GRPO); 0 for a leaf that was not
    judged."""
    if not f.judged.all():
        own = np.zeros(f.leaves)
        if f.judged.any():
            own[f.judged] = leaf_advantages(f.judged_part(), spec)
        return own
    if _all_equal(f, spec):
        return np.zeros(f.leaves)
    reward = f.reward.astype(np.float64)
    weights = _leaf_weights(f, spec)
    if spec.baseline == "forest_and_tree":
        return _standardise(reward, np.zeros(f.leaves, int), spec) + _standardise(reward, f.tree[f.leaf_segment], spec)
    if spec.baseline == "prefix_groups":
        # mean over the groups that a leaf belongs to (the forest, then every segment on its path that it shares) of R -
        # group mean
        shared = f.leaf_count > 1
        below = path_sum(f, np.where(shared, leaf_sum(f, reward) / f.leaf_count, 0.0))[f.leaf_segment]
        groups = 1.0 + path_sum(f, shared)[f.leaf_segment]
        A = reward - (weights @ reward + below) / groups
    elif spec.baseline == "leaf_loo":
        A = _leave_one_out(f, weights)
    else:
        A = reward - (weights @ reward if spec.baseline == "forest_mean" else 0.0)
    if spec.scale == "whiten":
        tokens = path_sum(f, f.lengths)[f.leaf_segment] / f.expanded_tokens
        A = A - tokens @ A
        return A / (np.sqrt(tokens @ A**2) + spec.eps)
    return A / _spread(f, spec, weights)


def _all_equal(f: Forest, spec: AdvantageSpec) -> bool:
    """Whether every comparison is 0: said outright, since AdamW would make a step of what rounding leaves of it."""
    alone = {"leaf_loo": f.leaves == 1, "sibling_loo": f.trees == 1 or np.sum((f.budget > 1) & (f.parent < 0)) == 1}
    compared = spec.baseline not in ("none", "leave_subtree_out") and not alone.get(spec.baseline, False)
    return compared and bool((f.reward == f.reward[0]).all())


def _standardise(x: Array, group: npt.NDArray[Any], spec: AdvantageSpec) -> Array:
    """(x - mean) / (std + eps) inside each group; 0 for a group of one."""
    n = np.bincount(group)
    centred = x - (np.bincount(group, x) / n)[group]
    if spec.scale == "none":
        return centred
    free = np.maximum(n - (spec.scale == "std_unbiased"), 1)
    return centred / (np.sqrt(np.bincount(group, centred**2) / free) + spec.eps)[group]
