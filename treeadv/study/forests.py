"""Describes the forests of a step: where they fork, how forks change the reward, and what siblings have in common."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from treeadv.forest import Forest
from treeadv.jsonl import JsonObject
from treeadv.replay.history import forests_of_step


def describe_forests(run: Path, step: int) -> JsonObject:
    """Return the figures of the forests that optimizer step `step` of a run used."""
    return {"step": step, **forest_figures(forests_of_step(str(run), step))}


def forest_figures(forests: Sequence[Forest]) -> JsonObject:
    """Return means over forests, forks and trees. A mean over an empty set is None.

    duplicate_siblings is the share of later children whose first token equals that of an earlier child of the same
    fork. fork_decides is the share of forks whose children differ in mean reward. within_tree is the correlation of the
    rewards of two leaves of the same tree, given the prompt. effective_leaves is the number of independent leaves with
    the same variance of the mean. It is computed from within_tree.
    """
    forks = [(f, s) for f in forests for s in range(f.segments) if len(f.children[s]) > 1]
    duplicates, decides, entropies, positions = [], [], [], []
    for f, s in forks:
        firsts = [int(f.token[f.start[c]]) for c in f.children[s]]
        duplicates += [t in firsts[:i] for i, t in enumerate(firsts) if i]
        means = [f.reward[f.segment(c).leaves.start : f.segment(c).leaves.stop].mean() for c in f.children[s]]
        decides.append(float(np.ptp(means)) > 0)
        entropies.append(float(f.entropy[f.start[f.children[s][0]]]))
        positions.append(int(f.offset[s] + f.lengths[s]))
    rho = _within_tree(forests)
    leaves_a_tree = np.mean([f.leaves / f.trees for f in forests])
    return {
        "forests": len(forests),
        "trees": _mean([f.trees for f in forests]),
        "leaves": _mean([f.leaves for f in forests]),
        "forks": _mean([sum(len(c) > 1 for c in f.children) for f in forests]),
        "sharing": 1 - sum(f.tokens for f in forests) / sum(f.expanded_tokens for f in forests),
        "mixed": _mean([float(np.ptp(f.reward)) > 0 for f in forests]),
        "depth_max": _mean([int(f.depth.max()) for f in forests]),
        "fork_position": _mean(positions),
        "fork_entropy": _mean(entropies),
        "duplicate_siblings": _mean(duplicates),
        "fork_decides": _mean(decides),
        "within_tree": rho,
        "effective_leaves": None
        if rho is None
        else float(np.mean([f.leaves for f in forests]) / (1 + (leaves_a_tree - 1) * max(rho, 0.0))),
        "answer_tokens": sum(f.expanded_tokens for f in forests) / sum(f.leaves for f in forests),
    }


def _within_tree(forests: Sequence[Forest]) -> float | None:
    """Return the correlation (same - other) / (square - other) of the rewards of two leaves of the same tree.

    `same` is the mean product of the rewards of two leaves of the same tree. `other` is that of two leaves of different
    trees. `square` is the mean square of the reward of a leaf. A forest without a pair of one of these kinds is left
    out. The three means are unbiased, but their ratio is biased."""
    rows = []
    for f in forests:
        reward, tree = f.reward.astype(float), f.tree[f.leaf_segment]
        together = (tree[:, None] == tree[None, :]) & ~np.eye(f.leaves, dtype=bool)
        apart = tree[:, None] != tree[None, :]
        if together.any() and apart.any():
            products = reward[:, None] * reward[None, :]
            rows.append((products[together].mean(), products[apart].mean(), (reward**2).mean()))
    if not rows:
        return None
    same, other, square = np.mean(rows, axis=0)
    return float((same - other) / (square - other)) if square > other else None


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None
