"""Hypothesis strategies for valid forests of any shape, shared by the tests of every part."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from treeadv.forest import Forest, Verdict


def build(
    parent: list[int],
    lengths: list[int],
    *,
    seed: int = 0,
    vocab: int = 32,
    prompt: int = 3,
    rewards: list[float] | None = None,
    lost: dict[int, int] | None = None,
    temperature: float = 1.0,
    version: int = 0,
    forest_id: str = "f",
) -> Forest:
    """Build a checked forest with the given tree and segment lengths.

    `seed` determines tokens, log-probs and, unless they are given, 0/1 rewards. `lost[s]` is the number of lost
    branches of segment s, which its arity still counts.
    """
    rng = np.random.default_rng(seed)
    up = np.asarray(parent, np.int32)
    arity = np.bincount(up[up >= 0], minlength=len(up)).astype(np.int32)
    leaves, tokens = int((arity == 0).sum()), sum(lengths)
    for s, branches in (lost or {}).items():
        arity[s] += branches
    graded = rng.integers(0, 2, leaves) if rewards is None else rewards
    forest = Forest.assemble(
        forest_id=forest_id, prompt_id="p", gold="1", verifier="exact", rule="entropy", tau=1.0,
        temperature=temperature,
        prompt=rng.integers(0, vocab, prompt), parent=up, lengths=lengths, arity=arity,
        token=rng.integers(0, vocab, tokens),
        logprob=-rng.gamma(1.5, 1.0, tokens), entropy=rng.gamma(1.0, 0.5, tokens), version=version,
    )  # fmt: skip
    return forest.with_rewards(np.asarray(graded, float).tolist(), [Verdict.VERIFIED] * leaves)


@st.composite
def parents(draw: st.DrawFn, max_trees: int = 4, max_depth: int = 4, max_segments: int = 24) -> list[int]:
    """Generate parent arrays in depth-first order: single leaves, single trees, deep chains of forks and wide forks."""
    out: list[int] = []

    def grow(up: int, depth: int) -> None:
        out.append(up)
        segment = len(out) - 1
        if depth < max_depth and len(out) + 2 <= max_segments:
            for _ in range(draw(st.sampled_from([0, 0, 2, 2, 3, 5]))):
                grow(segment, depth + 1)

    for _ in range(draw(st.integers(1, max_trees))):
        grow(-1, 0)
    return out


@st.composite
def forests(
    draw: st.DrawFn,
    max_trees: int = 4,
    max_depth: int = 4,
    max_segments: int = 24,
    max_length: int = 5,
    vocab: int = 32,
    max_prompt: int = 4,
    losses: bool = False,
) -> Forest:
    """Generate valid graded forests of one version. With `losses` a fork can lose up to two branches, so that its arity
    exceeds its number of children."""
    parent = draw(parents(max_trees, max_depth, max_segments))
    lengths = draw(st.lists(st.integers(1, max_length), min_size=len(parent), max_size=len(parent)))
    forks = sorted({p for p in parent if p >= 0})
    lost = {s: draw(st.integers(0, 2)) for s in forks} if losses else {}
    temperature = draw(st.sampled_from([1.0, 0.7]))
    return build(
        parent, lengths, seed=draw(st.integers(0, 2**32 - 1)), vocab=vocab, prompt=draw(st.integers(1, max_prompt)),
        lost=lost,
        temperature=temperature,
    )  # fmt: skip
