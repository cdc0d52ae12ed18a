"""Hypothesis strategies for valid forests of any shape, shared by the tests of every part."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from treeadv.forest import Finish, Forest, Verdict


def build(
    parent: list[int], lengths: list[int], *, seed: int = 0, vocab: int = 32, prompt: int = 3, rewards: list[float] | None = None,
    lost: dict[int, int] | None = None, temperature: float = 1.0, version: int = 0, forest_id: str = "f",
) -> Forest:
    """A checked forest with the given tree and segment lengths; tokens, log-probs and (unless given) 0/1 rewards come from `seed`.

    `lost[s]` is the number of branches that segment s drew and lost: its arity stays as drawn.
    """
    rng = np.random.default_rng(seed)
    up = np.asarray(parent, np.int32)
    kids = np.bincount(up[up >= 0], minlength=len(up)).astype(np.int32)
    arity = kids + np.array([(lost or {}).get(s, 0) for s in range(len(up))], np.int32)
    ends = np.flatnonzero(kids == 0).astype(np.int32)
    tokens, leaves = sum(lengths), len(ends)
    graded = rng.integers(0, 2, leaves) if rewards is None else rewards
    return Forest(
        forest_id, "p", "1", "exact", "", "entropy", True, 1.0, temperature, rng.integers(0, vocab, prompt).astype(np.int32),
        up, np.cumsum([0, *lengths], dtype=np.int32), (np.cumsum(up == -1) - 1).astype(np.int32), arity, _budgets(up),
        rng.integers(0, vocab, tokens).astype(np.int32), (-rng.gamma(1.5, 1.0, tokens)).astype(np.float32),
        rng.gamma(1.0, 0.5, tokens).astype(np.float32), np.full(tokens, version, np.int32), ends,
        np.full(leaves, Finish.STOP, np.int8), np.asarray(graded, np.float32), np.full(leaves, Verdict.VERIFIED, np.int8),
    ).check()  # fmt: skip


def _budgets(parent: np.ndarray) -> np.ndarray:
    """Leaves below each segment: the smallest budgets that allow this tree."""
    out = np.ones(len(parent), np.int32)
    inner = set(parent.tolist())
    for s in range(len(parent)):
        out[s] = s not in inner
    for s in range(len(parent) - 1, -1, -1):
        if parent[s] >= 0:
            out[parent[s]] += out[s]
    return out


@st.composite
def parents(draw: st.DrawFn, max_trees: int = 4, max_depth: int = 4, max_segments: int = 24) -> list[int]:
    """Parent arrays in depth-first order: single leaves, single trees, deep chains of forks and wide forks all occur."""
    out: list[int] = []

    def grow(up: int, depth: int) -> None:
        out.append(up)
        here = len(out) - 1
        if depth < max_depth and len(out) + 2 <= max_segments:
            for _ in range(draw(st.sampled_from([0, 0, 2, 2, 3, 5]))):
                grow(here, depth + 1)

    for _ in range(draw(st.integers(1, max_trees))):
        grow(-1, 0)
    return out


@st.composite
def forests(
    draw: st.DrawFn, max_trees: int = 4, max_depth: int = 4, max_segments: int = 24, max_length: int = 5, vocab: int = 32,
    max_prompt: int = 4, losses: bool = False,
) -> Forest:
    """Valid graded forests of one version. `losses` lets a fork lose up to two branches (arity above the children that exist)."""
    parent = draw(parents(max_trees, max_depth, max_segments))
    lengths = draw(st.lists(st.integers(1, max_length), min_size=len(parent), max_size=len(parent)))
    forks = sorted({p for p in parent if p >= 0})
    lost = {s: draw(st.integers(0, 2)) for s in forks} if losses else {}
    temperature = draw(st.sampled_from([1.0, 0.7]))
    return build(
        parent, lengths, seed=draw(st.integers(0, 2**32 - 1)), vocab=vocab, prompt=draw(st.integers(1, max_prompt)), lost=lost,
        temperature=temperature,
    )  # fmt: skip
