"""Computes the advantages of a forest from the rewards of its leaves (docs/method.md).

Each segment gets one advantage A and one loss weight c. L(s) denotes the leaves under segment s, and K = |L(s)| their
number. A forest has N leaves, M trees and the rewards R. Sums over subtrees are differences of prefix sums over the
leaves. Sums over paths are prefix sums over the Euler order. Both take O(S) time without recursion."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from treeadv.errors import BadForest
from treeadv.forest import Forest
from treeadv.presets import AdvantageSpec

Array = npt.NDArray[np.float64]


# ---- sums over the tree ----------------------------------------------------------------------------------------------
def path_sum(f: Forest, x: npt.ArrayLike) -> Array:
    """Return [S]: the sum of x [S] over the path from the root to each segment, both included.

    The sum adds x at the start of a subtree and subtracts it at the end."""
    x = np.asarray(x, np.float64)
    steps = np.zeros(f.segments + 1)
    steps[:-1] = x
    np.subtract.at(steps, f.subtree_end, x)
    return np.cumsum(steps[:-1])


def leaf_sum(f: Forest, y: npt.ArrayLike) -> Array:
    """Return [S]: the sum of y [L] over the leaves under each segment."""
    total = np.concatenate([[0.0], np.cumsum(np.asarray(y, np.float64))])
    return total[f.leaf_begin + f.leaf_count] - total[f.leaf_begin]


def flow_weights(f: Forest) -> Array:
    """Return [S]: the probability mass of each segment. w(root) = 1/M and w(child) = w(parent) / arity(parent).

    `arity` also counts lost branches, so the mass of a lost branch does not pass to its siblings.
    """
    log_arity = np.log(np.maximum(f.arity, 1))
    return np.exp(log_arity - path_sum(f, log_arity)) / f.trees


# ---- values, baselines, scales ---------------------------------------------------------------------------------------
def values(f: Forest, spec: AdvantageSpec, reward: Array | None = None) -> Array:
    """Return [S]: the value V(s) of each segment.

    V(s) is the mean of `reward` [L] over the leaves under s, or the unweighted mean of V over the children of s.
    `spec.value` chooses between the two."""
    reward = f.reward.astype(np.float64) if reward is None else reward
    if spec.value == "leaf_mean":
        return leaf_sum(f, reward) / f.leaf_count
    kids = np.bincount(f.parent[f.parent >= 0], minlength=f.segments)
    log_kids = np.log(np.maximum(kids, 1))
    vote = np.exp(log_kids - path_sum(f, log_kids))  # weight of the segment in the value of its root
    return leaf_sum(f, vote[f.leaf_segment] * reward) / vote


def _leaf_weights(f: Forest, spec: AdvantageSpec) -> Array:
    """Return [L]: the weights of the leaves in the mean and in the standard deviation of the rewards. They sum to 1."""
    w = flow_weights(f)[f.leaf_segment] if spec.leaf_weight == "flow" else np.ones(f.leaves)
    return w / w.sum()


def _reward_scale(f: Forest, spec: AdvantageSpec, weights: Array) -> float:
    """Return the standard deviation of the rewards plus `spec.eps`, or 1 without a scale.

    The unbiased standard deviation divides the variance by 1 - sum w^2, which is (N-1)/N for equal weights."""
    if spec.scale == "none":
        return 1.0
    mean = weights @ f.reward
    variance = float(weights @ (f.reward - mean) ** 2)
    left = 1.0 - float(weights @ weights)
    if spec.scale == "std_unbiased":
        variance = variance / left if f.leaves > 1 else 0.0
    return float(np.sqrt(variance)) + spec.eps


def _baseline(f: Forest, spec: AdvantageSpec, V: Array) -> Array | float:
    """Return the baseline [S] that is subtracted from each value, or one number for all segments."""
    weights = _leaf_weights(f, spec)
    mean = float(weights @ f.reward)
    if spec.baseline == "none":
        return 0.0
    if spec.baseline == "leaf_loo":
        return V - values(f, spec, _leave_one_out(f, weights))
    if spec.baseline == "leave_subtree_out":
        # A forest that forks too little gets extra roots of budget 1. Their number depends on the tokens of the trees
        # that could fork, so those trees are compared only with each other.
        could = (f.budget[f.parent < 0] > 1)[f.tree]
        return np.where(could, _mean_outside(f, weights * could[f.leaf_segment]), _mean_outside(f, weights))
    if spec.baseline == "sibling_loo":
        return _sibling_mean(f, V)
    if spec.baseline == "parent_fork":
        return np.where(f.parent < 0, mean, V[f.parent])
    if spec.baseline == "segment_mean":
        return (np.bincount(f.tree, V) / np.bincount(f.tree))[f.tree]
    return mean


def _sibling_mean(f: Forest, V: Array) -> Array:
    """Return [S]: the mean of V over the siblings of a segment, or the baseline of the parent if all siblings are lost.

    The siblings of a root are the other roots. The siblings of a root that could fork are only the other roots that
    could fork. A root without siblings has the baseline 0."""
    could = f.budget > 1
    total = np.bincount(f.parent + 1, V * (f.parent >= 0), f.segments + 1)  # sum of V by parent, without the roots
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
    """Return [S]: the term that `branch_td` adds to the advantage of a segment's first token.

    The term is (V(s) - V(parent)) / scale (TEMPO, arXiv 2509.18314). For a root, V(parent) is the mean reward. The term
    is 0 in a forest of equal rewards."""
    if _all_equal(f, spec):
        return np.zeros(f.segments)
    weights = _leaf_weights(f, spec)
    V = values(f, spec)
    above = np.where(f.parent < 0, float(weights @ f.reward), V[f.parent])
    return spec.branch_td * (V - above) / _reward_scale(f, spec, weights)


def _leave_one_out(f: Forest, weights: Array) -> Array:
    """Return [L]: R_i minus the weighted mean reward of the other leaves, or R_i if the forest has one leaf.

    `weights` [L] sum to 1."""
    reward = f.reward.astype(np.float64)
    if f.leaves == 1:
        return reward
    return (reward - weights @ reward) / (1.0 - weights)  # R_i - (mean - u_i R_i) / (1 - u_i)


def _mean_outside(f: Forest, weights: Array) -> Array:
    """Return [S]: the mean reward, weighted by `weights` [L], of the leaves that are not under the segment.

    The mean is 0 if every leaf with a weight above 0 is under the segment."""
    alone = leaf_sum(f, weights > 0) == np.count_nonzero(weights)
    inside = leaf_sum(f, weights * f.reward), leaf_sum(f, weights)
    return np.where(alone, 0.0, (weights @ f.reward - inside[0]) / np.where(alone, 1.0, weights.sum() - inside[1]))


def _loss_weights(f: Forest, spec: AdvantageSpec) -> Array:
    """Return [S]: c(s), the weight of each token of the segment in the loss."""
    if spec.weight == "flow":
        # The weight is M times the mass of the leaves that exist. Every root that lost no branch has weight 1, for any
        # number of extra roots. The mass of a lost leaf is not redistributed, so a state with many leaves weighs no
        # more than another state.
        return f.trees * leaf_sum(f, flow_weights(f)[f.leaf_segment])
    power = {"once": 0.0, "per_leaf": 1.0, "sqrt": 0.5}[spec.weight]
    return f.leaf_count.astype(np.float64) ** power


# ---- advantages and loss weights -------------------------------------------------------------------------------------
def advantages(f: Forest, spec: AdvantageSpec) -> tuple[Array, Array]:
    """Return (A [S], c [S]) of a graded forest: the advantage and the loss weight of each segment's tokens.

    Under credit=leaf, A is the mean of the advantages of the segment's leaves, and the flattened loss applies the
    advantage of each leaf. No mean contains a leaf that no verifier judged. A segment without a judged leaf has A = c =
    0. Raises `BadForest` if the forest is not graded."""
    if not f.graded:
        raise BadForest(f.forest_id, "not graded: advantages need a reward for every leaf")
    if not f.judged.all():
        return _advantages_of_judged(f, spec)
    c = _loss_weights(f, spec)
    if spec.credit == "leaf":
        return leaf_sum(f, leaf_advantages(f, spec)) / f.leaf_count, c
    if _all_equal(f, spec):
        return np.zeros(f.segments), c
    V = values(f, spec)
    A = V - _baseline(f, spec, V)
    if spec.local:
        # Each of the K copies of a token adds A c / K to the loss. TreeRL adds the difference of this product between
        # a segment and its parent.
        copy = A * c / f.leaf_count
        A = A + spec.local * (copy - np.where(f.parent < 0, 0.0, copy[f.parent])) * f.leaf_count / c
    return A / _reward_scale(f, spec, _leaf_weights(f, spec)), c


def _advantages_of_judged(f: Forest, spec: AdvantageSpec) -> tuple[Array, Array]:
    """Return (A [S], c [S]) of the whole forest from its judged part. Segments outside of this part have A = c = 0."""
    A, c = np.zeros(f.segments), np.zeros(f.segments)
    if f.judged.any():
        A[f.judged_below], c[f.judged_below] = advantages(f.judged_part(), spec)
    return A, c


def leaf_advantages(f: Forest, spec: AdvantageSpec) -> Array:
    """Return [L]: the advantage of each leaf under credit=leaf (GRPO, GSPO, TreePO, Tree-GRPO).

    A leaf that was not judged has advantage 0."""
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
        # A is the mean of (R - group mean) over the groups of the leaf. The groups are the forest and every segment of
        # the leaf's path that has other leaves too.
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
    return A / _reward_scale(f, spec, weights)


def _all_equal(f: Forest, spec: AdvantageSpec) -> bool:
    """Return whether every advantage is 0 because all rewards are equal.

    The caller then returns exact zeros, because AdamW would turn a rounding error into a full step."""
    alone = {"leaf_loo": f.leaves == 1, "sibling_loo": f.trees == 1 or np.sum((f.budget > 1) & (f.parent < 0)) == 1}
    compared = spec.baseline not in ("none", "leave_subtree_out") and not alone.get(spec.baseline, False)
    return compared and bool((f.reward == f.reward[0]).all())


def _standardise(x: Array, group: npt.NDArray[np.integer], spec: AdvantageSpec) -> Array:
    """Return (x - mean) / (std + eps) with the mean and std of the group of each entry.

    A group of one entry gives 0.
    """
    n = np.bincount(group)
    centred = x - (np.bincount(group, x) / n)[group]
    if spec.scale == "none":
        return centred
    free = np.maximum(n - (spec.scale == "std_unbiased"), 1)
    return centred / (np.sqrt(np.bincount(group, centred**2) / free) + spec.eps)[group]
