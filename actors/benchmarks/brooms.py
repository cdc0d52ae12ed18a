"""Synthetic forests of a wanted sharing, and their leaves as forests without forks."""

from __future__ import annotations

import numpy as np

from treeadv.forest import Finish, Forest, Verdict

ARITY = 4  # leaves of a tree: a trunk with one fork at its end


def broom(leaves: int, length: int, sharing: float, prompt: int, vocab: int, seed: int = 0) -> Forest:
    """G leaves of `length` tokens in G/4 trees whose trunks are as long as makes 1 - tokens / expanded tokens = `sharing`."""
    trunk = round(length * sharing / (1 - 1 / ARITY))
    if not 0 < trunk < length or leaves % ARITY:
        raise ValueError(f"no broom of {leaves} leaves of {length} tokens has sharing {sharing}")
    trees = leaves // ARITY
    parent = [p for m in range(trees) for p in (-1, *[m * (ARITY + 1)] * ARITY)]
    return _forest(parent, [trunk, *[length - trunk] * ARITY] * trees, prompt, vocab, np.random.default_rng(seed))


def flattened(f: Forest) -> list[Forest]:
    """Each leaf of a forest as a forest of its own, with its prompt: what the same leaves cost without sharing.

    They are flat rollouts of other tokens with as many of them; a step on them costs what one on the leaves would.
    """
    rng = np.random.default_rng(1)
    top = int(max(f.prompt.max(), f.token.max())) + 1
    return [_forest([-1], [len(f.leaf_tokens(i))], len(f.prompt), top, rng) for i in range(f.leaves)]


def _forest(parent: list[int], lengths: list[int], prompt: int, vocab: int, rng: np.random.Generator) -> Forest:
    up = np.asarray(parent, np.int32)
    arity = np.bincount(up[up >= 0], minlength=len(up)).astype(np.int32)
    ends = np.flatnonzero(arity == 0).astype(np.int32)
    T, L = sum(lengths), len(ends)
    return Forest(
        f"bench-{rng.integers(2**31)}", "p", "", "exact", "", "fixed", True, float("nan"), 1.0,
        rng.integers(3, vocab, prompt).astype(np.int32), up, np.cumsum([0, *lengths], dtype=np.int32),
        (np.cumsum(up == -1) - 1).astype(np.int32), arity, np.maximum(arity, 1), rng.integers(3, vocab, T).astype(np.int32),
        (-rng.gamma(1.5, 1.0, T)).astype(np.float32), rng.gamma(1.0, 0.5, T).astype(np.float32), np.zeros(T, np.int32),
        ends, np.full(L, Finish.STOP, np.int8), (np.arange(L) % 2).astype(np.float32), np.full(L, Verdict.VERIFIED, np.int8),
    ).check()  # fmt: skip
