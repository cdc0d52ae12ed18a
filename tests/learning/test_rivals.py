"""Compares BPO and TEMPO with their definitions, which are written here as loops over leaves and prefixes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.bias import measure
from benchmarks.tabular import World
from tests.strategies import build, forests
from treeadv import config as configuration
from treeadv.config import SamplingConfig
from treeadv.forest import Forest, Verdict
from treeadv.learning.advantage import advantages
from treeadv.learning.objective import Objective, changes_nothing, evaluate, scales
from treeadv.presets import PRESETS, AdvantageSpec
from treeadv.sampling.forking import split

BPO, TEMPO = PRESETS["bpo"].advantage, PRESETS["tempo"].advantage


# ---- BPO -------------------------------------------------------------------------------------------------------------
def child_mean(f: Forest, s: int) -> float:
    if not f.children[s]:
        return float(f.reward[list(f.leaf_segment).index(s)])
    return float(np.mean([child_mean(f, c) for c in f.children[s]]))


def sibling_baseline(f: Forest, s: int) -> float:
    """Return the mean value of the siblings. If all siblings were lost, return the baseline of the parent."""
    roots = [r for r in range(f.segments) if f.parent[r] < 0]
    if f.parent[s] < 0:
        rivals = [r for r in roots if r != s and (f.budget[r] > 1 or f.budget[s] == 1)]
        return float(np.mean([child_mean(f, r) for r in rivals])) if rivals else 0.0
    siblings = [c for c in f.children[f.parent[s]] if c != s]
    if not siblings:
        return sibling_baseline(f, int(f.parent[s]))
    return float(np.mean([child_mean(f, c) for c in siblings]))


@given(forests())
def test_bpo_is_sibling_leave_one_out_written_out(f: Forest) -> None:
    A, _ = advantages(f, BPO)
    expected = [child_mean(f, s) - sibling_baseline(f, s) for s in range(f.segments)]
    np.testing.assert_allclose(A, expected, rtol=1e-9, atol=1e-9)


def test_bpo_of_equal_rewards_is_exactly_zero() -> None:
    f = build([-1, 0, 0, 0, -1], [2, 1, 1, 1, 3], rewards=[0.1, 0.1, 0.1, 0.1])
    f = dataclasses.replace(f, budget=np.array([3, 1, 1, 1, 3], np.int32))
    assert not advantages(f, BPO)[0].any()


def test_bpo_sibling_of_a_lost_branch_takes_the_parents_baseline() -> None:
    """The fork of arity 2 has one child, because the other branch was lost. The baseline of this child is the baseline
    of its parent."""
    f = build([-1, 0, -1], [2, 1, 3], rewards=[1.0, 0.25], lost={0: 1})
    np.testing.assert_allclose(advantages(f, BPO)[0], [0.75, 0.75, -0.75])


@given(budget=st.integers(2, 20), arity=st.integers(2, 4))
def test_backbone_split_leaves_forks_to_the_first_child(budget: int, arity: int) -> None:
    if budget >= arity:
        shares = split(budget, arity, "backbone")
        assert sum(shares) == budget and shares[1:] == [1] * (arity - 1) and shares[0] >= 1


def test_bpo_preset_brings_the_backbone_split() -> None:
    tree = {"task": {"source": "operator-tables"}, "learner": {"preset": "bpo"}}
    assert configuration.build(dict(tree), [], "test").sampling.split == "backbone"
    assert configuration.build(dict(tree), ["sampling.split=even"], "test").sampling.split == "even"
    assert SamplingConfig().split == "even"


@pytest.mark.parametrize("forests", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_bpo_hits_the_exact_gradient(forests: int) -> None:
    """Sibling leave-one-out on flow weights has no bias, with even and with backbone splits."""
    rows = [row for rule in ("entropy", "backbone") for row in measure(World.random(0), rule, {"b": BPO}, forests, 1)]
    assert np.sqrt(np.mean([(row["bias"] / row["error"]) ** 2 for row in rows])) < 1.6


# ---- TEMPO -----------------------------------------------------------------------------------------------------------
def flat_forest(sequences: list[list[int]], rewards: list[float], logprob: dict[tuple[int, ...], float]) -> Forest:
    f = Forest.assemble(
        prompt=[1],
        parent=[-1] * len(sequences),
        lengths=[len(s) for s in sequences],
        token=[t for s in sequences for t in s],
        logprob=[logprob[tuple(s[: i + 1])] for s in sequences for i in range(len(s))],
    )
    return f.with_rewards(rewards, [Verdict.VERIFIED] * len(sequences))


def prefixes(sequences: list[list[int]]) -> list[tuple[int, ...]]:
    return sorted({tuple(s[: i + 1]) for s in sequences for i in range(len(s))})


@st.composite
def groups(draw: st.DrawFn) -> tuple[list[list[int]], list[float], dict[tuple[int, ...], float]]:
    """Generate sequences over few tokens that all end in token 0. The text determines the reward."""
    body = st.lists(st.integers(1, 2), max_size=4)
    sequences = [[*tokens, 0] for tokens in draw(st.lists(body, min_size=1, max_size=7))]
    rewards = [float(sum(s) % 2) for s in sequences]
    steps = draw(st.lists(st.floats(-1.5, -0.01), min_size=64, max_size=64))
    return sequences, rewards, {p: steps[i % 64] for i, p in enumerate(prefixes(sequences))}


def written_out(
    sequences: list[list[int]], rewards: list[float], old: dict, new: dict, spec: AdvantageSpec
) -> tuple[float, dict[tuple[int, ...], float]]:
    """Return (loss, d loss / d log pi by prefix) of TEMPO on flat samples: A = (R - mean + V(after) - V(before)) /
    std."""
    std = np.std(rewards, ddof=1) + spec.eps if len(rewards) > 1 else 0.0
    if len(set(rewards)) == 1:
        return 0.0, dict.fromkeys(prefixes(sequences), 0.0)

    def value(prefix: tuple[int, ...]) -> float:
        return float(np.mean([r for s, r in zip(sequences, rewards, strict=True) if tuple(s[: len(prefix)]) == prefix]))

    loss, slope, count = 0.0, dict.fromkeys(prefixes(sequences), 0.0), sum(map(len, sequences))
    for s, reward in zip(sequences, rewards, strict=True):
        for t in range(len(s)):
            before, after = tuple(s[:t]), tuple(s[: t + 1])
            A = (reward - np.mean(rewards) + value(after) - value(before)) / std
            x = np.exp(new[after] - old[after])
            low, high = 1 - spec.clip[0], 1 + spec.clip[1]
            bounded = np.clip(x, low, high)
            gain = min(x * A, bounded * A) if A >= 0 else max(min(x * A, bounded * A), spec.dual_clip * A)
            loss -= gain / count
            if gain == x * A:
                slope[after] -= x * A / count
    return loss, slope


@given(groups(), st.integers(0, 5))
def test_tempo_on_the_merged_tree_is_tempo_on_flat_samples(group: tuple, shift: int) -> None:
    sequences, rewards, old = group
    rng = np.random.default_rng(shift)
    new = {p: x + (rng.normal(0, 0.3) if shift else 0.0) for p, x in old.items()}
    f = flat_forest(sequences, rewards, {p: np.float32(x) for p, x in old.items()}).merge_prefixes()
    paths: list[tuple[int, ...]] = []
    for s in range(f.segments):
        above = [int(t) for q in f.path(s)[:-1] for t in f.token[f.start[q] : f.start[q + 1]]]
        own = [int(t) for t in f.token[f.start[s] : f.start[s + 1]]]
        paths += [tuple(above + own[: i + 1]) for i in range(len(own))]
    o = Objective(spec=TEMPO)
    logp, proximal = (np.array([float(x[p]) for p in paths]) for x in (new, old))
    losses = evaluate(f, o, scales([f], o)[0], logp, proximal)
    loss, slope = written_out(sequences, rewards, old, new, TEMPO)
    assert losses.loss.sum() == pytest.approx(loss, abs=1e-6)
    found = dict.fromkeys(slope, 0.0)
    for p, value in zip(paths, losses.slope, strict=True):
        found[p] += value  # the last token of each of several equal sequences has its own entry
    assert found == pytest.approx(slope, abs=1e-6)
    assert changes_nothing(f, o) == (len(set(rewards)) == 1)


@given(forests())
def test_merging_keeps_every_leaf_with_its_reward(f: Forest) -> None:
    merged = f.merge_prefixes()

    def leaves(x: Forest) -> list[tuple]:
        return sorted(
            (tuple(x.leaf_tokens(i).tolist()), float(x.reward[i]), int(x.verdict[i]), int(x.finish[i]))
            for i in range(x.leaves)
        )

    assert leaves(merged) == leaves(f)
    assert merged.tokens <= f.tokens and merged.expanded_tokens == f.expanded_tokens
    assert (merged.forest_id, merged.rule, merged.predictable) == (f.forest_id, "merged", False)


def test_merged_token_has_the_oldest_version() -> None:
    f = dataclasses.replace(
        build([-1, -1], [3, 3], rewards=[1.0, 0.0]),
        token=np.array([5, 6, 7, 5, 6, 8], np.int32),
        version=np.array([1, 4, 4, 2, 3, 5], np.int32),
    )
    assert f.merge_prefixes().version.tolist() == [1, 3, 4, 5]


def test_tempo_without_shared_prefixes_is_grpo() -> None:
    f = build([-1, -1, -1], [2, 3, 1], rewards=[1.0, 0.0, 0.0])
    f = dataclasses.replace(f, token=np.arange(1, 7, dtype=np.int32))
    tempo, grpo = (Objective(spec=x) for x in (TEMPO.model_copy(update={"branch_td": 0.0}), PRESETS["grpo"].advantage))
    logp = f.logprob.astype(float)
    merged = f.merge_prefixes()
    slopes = [evaluate(x, o, scales([x], o)[0], logp).slope for x, o in ((merged, tempo), (f, grpo))]
    np.testing.assert_array_equal(*slopes)


def test_branch_td_needs_the_leafs_own_advantage() -> None:
    with pytest.raises(ValueError, match="credit=leaf"):
        AdvantageSpec(branch_td=1.0)
