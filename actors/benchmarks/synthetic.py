"""Synthetic forests with a given sharing ratio, and the same leaves as forests without forks."""

from __future__ import annotations

import numpy as np

from treeadv.forest import Forest, Verdict

ARITY = 4  # leaves of a tree; a tree is a root segment with one fork at its end


def synthetic_forest(leaves: int, length: int, sharing: float, prompt: int, vocab: int, seed: int = 0) -> Forest:
    """Build a forest of `leaves` leaves of `length` tokens each, with `ARITY` leaves in a tree.

    The length of the root segments gives the forest the sharing ratio 1 - tokens / expanded tokens = `sharing`."""
    trunk = round(length * sharing / (1 - 1 / ARITY))
    if not 0 < trunk < length or leaves % ARITY:
        raise ValueError(f"no synthetic forest of {leaves} leaves of {length} tokens has sharing {sharing}")
    trees = leaves // ARITY
    parent = [p for m in range(trees) for p in (-1, *[m * (ARITY + 1)] * ARITY)]
    return _forest(parent, [trunk, *[length - trunk] * ARITY] * trees, prompt, vocab, np.random.default_rng(seed))


def flattened(f: Forest) -> list[Forest]:
    """Return one forest for each leaf of `f`: a single leaf with the same prompt length. They show the cost without
    sharing.

    The tokens are random, but each forest has as many tokens as its leaf. A step on it costs the same as on the leaf
    itself. Every leaf has the reward 1."""
    rng = np.random.default_rng(1)
    top = int(max(f.prompt.max(), f.token.max())) + 1
    flat = [_forest([-1], [len(f.leaf_tokens(i))], len(f.prompt), top, rng) for i in range(f.leaves)]
    return [g.with_rewards([1.0], [Verdict.VERIFIED]) for g in flat]


def _forest(parent: list[int], lengths: list[int], prompt: int, vocab: int, rng: np.random.Generator) -> Forest:
    up = np.asarray(parent, np.int32)
    T = sum(lengths)
    forest = Forest.assemble(
        forest_id=f"bench-{rng.integers(2**31)}", prompt_id="p", verifier="exact", rule="fixed",
        prompt=rng.integers(3, vocab, prompt), parent=up, lengths=lengths, token=rng.integers(3, vocab, T),
        logprob=-rng.gamma(1.5, 1.0, T), entropy=rng.gamma(1.0, 0.5, T),
    )  # fmt: skip
    return forest.with_rewards([float(i % 2) for i in range(forest.leaves)], [Verdict.VERIFIED] * forest.leaves)


def binary_forest(leaves: int, tokens: int) -> Forest:
    """Build two binary trees with `leaves` leaves in total and `tokens` tokens in each segment."""
    parent: list[int] = []

    def grow(up: int, n: int) -> None:
        parent.append(up)
        segment = len(parent) - 1
        if n > 1:
            grow(segment, n // 2)
            grow(segment, n - n // 2)

    grow(-1, leaves // 2)
    grow(-1, leaves - leaves // 2)
    up = np.asarray(parent, np.int32)
    n, rng = len(up) * tokens, np.random.default_rng(0)
    forest = Forest.assemble(
        forest_id="f",
        prompt_id="p",
        gold="1",
        verifier="exact",
        rule="entropy",
        tau=1.0,
        prompt=np.arange(32),
        parent=up,
        lengths=[tokens] * len(up),
        token=rng.integers(0, 50_000, n),
        logprob=-rng.random(n),
        entropy=rng.random(n),
    )
    return forest.with_rewards([float(i % 2) for i in range(forest.leaves)], [Verdict.VERIFIED] * forest.leaves)
