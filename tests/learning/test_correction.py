"""Off-policy corrections: the identity at equal policies, caps, masks, and what they report."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import build, forests
from treeadv.config import LearnerConfig, SamplingConfig
from treeadv.errors import BadInput
from treeadv.forest import Forest
from treeadv.learning.correction import CAP, ICEPOP, correct, mismatch
from treeadv.learning.objective import Objective, build_objective, evaluate, scales
from treeadv.presets import PRESETS

KINDS = ["none", "tis", "sequence_tis", "icepop", "decoupled"]


def outcome(f: Forest, preset: str, kind: str, logp: np.ndarray):
    o = Objective(PRESETS[preset].advantage, kind, room=16)
    return evaluate(f, o, scales([f], o)[0], logp)


def noise(f: Forest, seed: int, spread: float) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.0, spread, f.tokens)


@given(st.sampled_from(sorted(PRESETS)), forests(losses=True))
def test_at_equal_policies_every_correction_is_the_identity(preset, f):
    logp = f.logprob.astype(float)
    plain = outcome(f, preset, "none", logp)
    for kind in KINDS:
        corrected = outcome(f, preset, kind, logp)
        assert corrected.loss == pytest.approx(plain.loss, rel=1e-12, abs=1e-12)
        np.testing.assert_allclose(corrected.slope, plain.slope, rtol=1e-12, atol=1e-15)
        assert corrected.mismatch.kl == 0 and corrected.mismatch.effective_share == pytest.approx(1)


@given(forests(), st.integers(0, 99), st.floats(0.1, 30.0))
def test_no_weight_passes_its_cap_and_icepop_masks_outside_of_its_bounds(f, seed, spread):
    log_w = noise(f, seed, spread)
    assert correct("tis", f, log_w).token.max() <= CAP
    assert correct("sequence_tis", f, log_w).leaf.max() <= CAP
    kept = correct("icepop", f, log_w).token
    inside = (np.exp(log_w) >= ICEPOP[0]) & (np.exp(log_w) <= ICEPOP[1])
    np.testing.assert_array_equal(kept > 0, inside)
    np.testing.assert_allclose(kept[inside], np.exp(log_w[inside]))


@given(forests(), st.integers(0, 99))
def test_the_sequence_weight_of_a_leaf_is_the_product_along_its_path(f, seed):
    log_w = noise(f, seed, 0.3)
    for leaf, w in enumerate(correct("sequence_tis", f, log_w).leaf):
        path = np.concatenate([log_w[f.start[s] : f.start[s + 1]] for s in f.path(int(f.leaf_segment[leaf]))])
        assert w == pytest.approx(min(np.exp(path.sum()), CAP))


def test_what_a_leaf_loses_reaches_a_shared_token_as_the_mean_over_its_leaves():
    """Trunk of one token over two leaves whose paths have weights 1 and 0.5: the trunk keeps 3/4 of its slope."""
    f = build([-1, 0, 0, -1], [1, 1, 1, 1], rewards=[1, 1, 0])
    f = dataclasses.replace(f, logprob=np.array([-1, -1, -1, -1], np.float32))
    logp = np.array([-1, -1, -1 + np.log(0.5), -1])
    full = outcome(f, "treeadv", "sequence_tis", f.logprob.astype(float)).slope
    np.testing.assert_allclose(outcome(f, "treeadv", "sequence_tis", logp).slope / full, [0.75, 1, 0.5, 1])


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("shift", [-50.0, 50.0])
def test_a_fully_masked_forest_gives_zero_and_no_nan(preset, shift):
    f = build([-1, 0, 0, -1], [2, 1, 2, 3], rewards=[1, 0, 0])
    f = dataclasses.replace(f, logprob=np.full(f.tokens, -60.0, np.float32))
    result = outcome(f, preset, "icepop", f.logprob + shift)
    assert result.loss == 0 and not result.slope.any() and result.masked == f.tokens
    assert np.isfinite([result.mismatch.kl, result.mismatch.effective_share]).all()


@given(st.sampled_from(KINDS), st.sampled_from(sorted(PRESETS)), forests(), st.integers(0, 99))
def test_extreme_mismatch_stays_finite(kind, preset, f, seed):
    result = outcome(f, preset, kind, f.logprob + np.clip(noise(f, seed, 30.0), -200, 200))
    assert np.isfinite(result.loss) and np.isfinite(result.slope).all() and np.isfinite(result.mismatch.k3)
    assert 0 <= result.clipped <= f.tokens and 0 <= result.masked <= f.tokens


TOKEN_RATIO = sorted(name for name, p in PRESETS.items() if p.advantage.ratio == "token")


@given(st.sampled_from(TOKEN_RATIO), forests(max_segments=8), st.integers(0, 99), st.sampled_from([0.0, 0.2]))
def test_slope_is_the_derivative_of_the_loss_away_from_the_behaviour_policy(preset, f, seed, kl):
    rng = np.random.default_rng(seed)
    logp = f.logprob + rng.normal(0, 0.3, f.tokens)
    reference = logp + rng.normal(0, 0.3, f.tokens)
    o = Objective(PRESETS[preset].advantage, "none", kl, room=16)
    scale = scales([f], o)[0]

    def at(x: np.ndarray):
        return evaluate(f, o, scale, x, reference)

    t, h = int(rng.integers(f.tokens)), 1e-6
    step = np.zeros(f.tokens)
    step[t] = h
    numeric = (at(logp + step).loss - at(logp - step).loss) / (2 * h)
    assert at(logp).slope[t] == pytest.approx(numeric, rel=1e-4, abs=1e-8)


@given(st.sampled_from(["tis", "icepop", "decoupled"]), st.sampled_from(TOKEN_RATIO), forests(), st.integers(0, 99))
def test_a_correction_weighs_the_slope_at_ratio_1_and_nothing_is_clipped(kind, preset, f, seed):
    logp = f.logprob + noise(f, seed, 1.0)
    spec = PRESETS[preset].advantage.model_copy(update={"max_prob": 1.0})
    o = Objective(spec, kind, room=16)
    scale = scales([f], o)[0]
    result = evaluate(f, o, scale, logp)
    at_one = evaluate(f, Objective(spec, room=16), scale, f.logprob.astype(float)).slope
    np.testing.assert_allclose(result.slope, correct(kind, f, logp - f.logprob).token * at_one, rtol=1e-9, atol=1e-15)
    assert result.clipped == 0


@pytest.mark.parametrize("preset", ["gspo", "treeadv_gspo"])
def test_gspo_as_a_configuration_gives_it_clips_by_the_ratio_of_a_leafs_path(preset):
    """The good leaf's mean ratio is over its clip, so it is not pushed further, although a token of it is under."""
    learner = LearnerConfig(preset=preset, correction="none")
    f = build([-1, -1], [2, 2], rewards=[1, 0])
    result = evaluate(f, build_objective(learner, SamplingConfig()), 1.0, f.logprob + np.array([0.1, -0.05, 0.01, 0.01]))
    np.testing.assert_array_equal(result.slope == 0, [True, True, False, False])


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "none"])
@pytest.mark.parametrize(("learner", "idle"), [
    ({"preset": "gspo"}, r"the ratio of a leaf path \(GSPO\)"),
    ({"preset": "treeadv", "advantage": {"ratio": "leaf_path"}}, r"the ratio of a leaf path \(GSPO\)"),
    ({"preset": "treeadv", "advantage": {"clip": [0.2, 0.28]}}, "learner.advantage.clip"),
])  # fmt: skip
def test_what_a_correction_would_leave_idle_is_refused_with_the_remedy(kind, learner, idle):
    with pytest.raises(BadInput, match=f"learner.correction={kind}: holds the ratio at 1, where {idle} does nothing; .*correction=none"):
        build_objective(LearnerConfig(correction=kind, **learner), SamplingConfig())
    build_objective(LearnerConfig(correction="none", **learner), SamplingConfig())


def test_every_preset_can_be_asked_for():
    for name, preset in PRESETS.items():
        o = build_objective(LearnerConfig(preset=name, correction="none", kl=0.1), SamplingConfig(leaves=4, max_tokens=8))
        assert o == Objective(preset.advantage, "none", 0.1, 32)


@given(forests(), st.integers(0, 99))
def test_mismatch_figures_equal_their_definitions(f, seed):
    log_w = noise(f, seed, 0.5)
    w = np.exp(log_w)
    m = mismatch(log_w)
    assert m.kl == pytest.approx(np.mean(w - 1 - log_w)) and m.kl >= 0
    assert m.effective_share == pytest.approx(w.sum() ** 2 / (len(w) * (w**2).sum()))
    assert 0 < m.effective_share <= 1 + 1e-12


def test_clipping_counts_tokens_whose_slope_it_stopped():
    f = build([-1, -1], [2, 2], rewards=[1, 0])
    logp = f.logprob + np.log([1.5, 0.5, 0.5, 1.5])  # good leaf: first token over the clip; bad leaf: first token under it
    result = outcome(f, "treeadv", "none", logp)
    assert result.clipped == 2
    np.testing.assert_array_equal(result.slope == 0, [True, False, True, False])


def test_tokens_that_were_almost_certain_are_not_trained_under_spo():
    f = build([-1, -1], [2, 2], rewards=[1, 0])
    f = dataclasses.replace(f, logprob=np.log([0.95, 0.5, 0.5, 0.91]).astype(np.float32))
    result = outcome(f, "spo_tree", "tis", f.logprob.astype(float))
    np.testing.assert_array_equal(result.slope == 0, [True, False, False, True])
    assert result.masked == 2
