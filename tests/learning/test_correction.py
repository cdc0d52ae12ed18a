"""Tests off-policy corrections and the clipped objective against their definitions, computed leaf by leaf."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.learning import flat
from tests.strategies import build, forests
from treeadv.config import LearnerConfig, SamplingConfig
from treeadv.errors import BadInput
from treeadv.forest import Forest
from treeadv.learning.advantage import leaf_sum, path_sum
from treeadv.learning.correction import CORRECTIONS, Correction, Factor, correct, find_correction
from treeadv.learning.objective import Objective, TokenLosses, build_objective, evaluate, scales
from treeadv.presets import PRESETS, AdvantageSpec

NAMES = sorted(CORRECTIONS)
PRESET_NAMES = sorted(PRESETS)
TOKEN_RATIO = sorted(n for n, p in PRESETS.items() if p.advantage.ratio == "token" and p.advantage.surrogate == "clip")
ONE_TOKEN_EACH = build([-1, -1], [1, 1], rewards=[1, 0])


def objective(preset: str, correction: str, **more) -> Objective:
    return Objective(spec=PRESETS[preset].advantage, correction=CORRECTIONS[correction], room=16, **more)


def losses(f: Forest, o: Objective, logp: np.ndarray, proximal: np.ndarray | None = None) -> TokenLosses:
    return evaluate(f, o, scales([f], o)[0], logp, proximal)


def noise(f: Forest, seed: int, spread: float) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.0, spread, f.tokens)


def behaviour(f: Forest) -> np.ndarray:
    return f.logprob.astype(float)


# ---- corrections -----------------------------------------------------------------------------------------------------
@settings(max_examples=50)
@given(st.sampled_from(PRESET_NAMES), forests(losses=True))
def test_every_correction_is_the_identity_at_equal_policies(preset, f):
    plain = losses(f, objective(preset, "none"), behaviour(f))
    for name in NAMES:
        result = losses(f, objective(preset, name), behaviour(f))
        np.testing.assert_allclose(result.loss, plain.loss, rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(result.slope, plain.slope, rtol=1e-12, atol=1e-15)
        assert result.sums().mismatch_kl == 0 and result.sums().effective_share == pytest.approx(1)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "bypass"])
@settings(max_examples=30)
@given(f=forests(losses=True), seed=st.integers(0, 99), spread=st.sampled_from([0.002, 0.1, 2.0]))
def test_weights_equal_those_of_the_flattened_leaves(name, f, seed, spread):
    """The weight of a shared token is the mean of the weights of its copies in the flattened leaves."""
    log_w = noise(f, seed, spread)
    weights = correct(CORRECTIONS[name], f, log_w)
    shared = weights.token * np.repeat(leaf_sum(f, weights.leaf) / f.leaf_count, f.lengths)
    total = np.zeros(f.tokens)
    for leaf in range(f.leaves):
        at = flat.on_leaf(f, np.arange(f.tokens), leaf).long().numpy()
        total[at] += flat.correction(name, flat.on_leaf(f, log_w, leaf).exp()).numpy()
    np.testing.assert_allclose(shared, total / np.repeat(f.leaf_count, f.lengths), rtol=1e-9, atol=1e-8)


def test_weight_of_a_leaf_reaches_a_shared_token_as_the_mean():
    """A root segment of one token has two leaves whose paths have weights 1 and 0.5. The root keeps 3/4 of its
    slope."""
    f = build([-1, 0, 0, -1], [1, 1, 1, 1], rewards=[1, 1, 0])
    f = dataclasses.replace(f, logprob=np.array([-1, -1, -1, -1], np.float32))
    logp = np.array([-1, -1, -1 + np.log(0.5), -1])
    o = objective("treeadv", "sequence_tis")
    np.testing.assert_allclose(losses(f, o, logp).slope / losses(f, o, behaviour(f)).slope, [0.75, 1, 0.5, 1])


@pytest.mark.parametrize("preset", PRESET_NAMES)
@pytest.mark.parametrize("correction", ["icepop", "sequence_mask", "geometric_mask"])
@pytest.mark.parametrize("shift", [-50.0, 50.0])
def test_fully_masked_forest_gives_zero(preset, correction, shift):
    f = build([-1, 0, 0, -1], [2, 1, 2, 3], rewards=[1, 0, 0])
    f = dataclasses.replace(f, logprob=np.full(f.tokens, -60.0, np.float32))
    result = losses(f, objective(preset, correction), f.logprob + shift)
    assert not result.loss.any() and not result.slope.any() and result.masked.all()
    assert np.isfinite(result.sums().array()).all()


@given(st.sampled_from(NAMES), st.sampled_from(PRESET_NAMES), forests(), st.integers(0, 99))
def test_extreme_mismatch_stays_finite(name, preset, f, seed):
    result = losses(f, objective(preset, name), f.logprob + np.clip(noise(f, seed, 30.0), -200, 200))
    assert (
        np.isfinite(result.loss).all() and np.isfinite(result.slope).all() and np.isfinite(result.sums().array()).all()
    )
    assert (result.clipped >= 0).all() and (result.clipped <= 1).all() and (result.masked <= 1).all()


@pytest.mark.parametrize("correction", NAMES)
@pytest.mark.parametrize("shape", ["shared token", "separate leaves"])
def test_one_extreme_engine_log_prob_does_not_dominate_a_step(correction, shape):
    """The engine reports the log-prob -30 for one token that is likely for the learner. The token is in a good leaf, in
    a bad leaf or in several leaves."""
    whole = ONE_TOKEN_EACH if shape == "separate leaves" else build([-1, 0, 0, -1], [1, 1, 1, 1], rewards=[1, 0, 0.5])
    for preset in PRESET_NAMES:
        for token in range(whole.tokens):
            extreme = np.arange(whole.tokens) == token
            f = dataclasses.replace(whole, logprob=np.where(extreme, -30.0, -1.0).astype(np.float32))
            logp = np.where(extreme, -0.5, -1.0)
            plain, result = losses(f, objective(preset, "none"), logp), losses(f, objective(preset, correction), logp)
            assert np.abs(result.loss).max() <= 5 * np.abs(plain.loss).max() + 1e-12, (preset, token)
            assert np.abs(result.slope).max() <= 5 * np.abs(plain.slope).max() + 1e-12, (preset, token)


@given(forests(), st.integers(0, 99))
def test_mismatch_figures_equal_their_definitions(f, seed):
    log_w = noise(f, seed, 0.5)
    w = np.exp(log_w)
    sums = losses(f, objective("treeadv", "tis"), behaviour(f) + log_w).sums()
    assert sums.mismatch_kl == pytest.approx(np.mean(w - 1 - log_w), abs=1e-12) and sums.mismatch_kl >= -1e-12
    assert sums.effective_share == pytest.approx(w.sum() ** 2 / (len(w) * (w**2).sum()))


OWN = Correction(factors=(Factor(level="token", outside="mask", bounds=(0.9, 1.1), mask_only=True),))


def test_correction_of_another_module_is_found_by_name():
    assert find_correction("tests.learning.test_correction:OWN") == OWN
    with pytest.raises(BadInput, match=r"is a Forest, not a treeadv\.learning\.correction\.Correction"):
        find_correction("tests.learning.test_correction:ONE_TOKEN_EACH")
    with pytest.raises(BadInput, match=r"learner.correction=icepopp is unknown, did you mean icepop\?"):
        find_correction("icepopp")


def test_configured_bounds_replace_those_of_the_correction():
    learner = LearnerConfig(correction="tis", correction_bounds=(0.0, 5.0))
    built = build_objective(learner, SamplingConfig()).correction
    assert built.factors == (Factor(level="token", outside="truncate", bounds=(0.0, 5.0)),)


@pytest.mark.parametrize(
    ("name", "bounds", "text"),
    [
        ("tis", (0.0, 0.5), r"correction_bounds=\[0.0, 0.5\] must contain 1"),
        ("icepop", (1.5, 5.0), "must contain 1"),
        ("none", (0.5, 5.0), "learner.correction=none has no bounds"),
        ("bypass", (0.5, 5.0), "learner.correction=bypass has no bounds"),
    ],
)
def test_invalid_correction_bounds_are_refused(name, bounds, text):
    with pytest.raises(BadInput, match=text):
        find_correction(name, bounds)


# ---- the surrogate ---------------------------------------------------------------------------------------------------
@given(
    st.sampled_from(TOKEN_RATIO), forests(max_segments=8), st.integers(0, 99), st.sampled_from(["k1", "k2", "k3", ""])
)
def test_slope_is_the_derivative_of_the_loss(preset, f, seed, estimator):
    rng = np.random.default_rng(seed)
    proximal = f.logprob + rng.normal(0, 0.3, f.tokens)
    logp, reference = proximal + rng.normal(0, 0.3, f.tokens), f.logprob + rng.normal(0, 0.3, f.tokens)
    o = objective(preset, "tis", kl=0.2 if estimator else 0.0, kl_estimator=estimator or "k3")
    scale = scales([f], o)[0]

    def at(x: np.ndarray) -> TokenLosses:
        return evaluate(f, o, scale, x, proximal, reference)

    t, h = int(rng.integers(f.tokens)), 1e-6
    step = np.zeros(f.tokens)
    step[t] = h
    numeric = (at(logp + step).loss.sum() - at(logp - step).loss.sum()) / (2 * h)
    assert at(logp).slope[t] == pytest.approx(numeric, rel=1e-4, abs=1e-8)


@given(st.sampled_from(NAMES), st.sampled_from(TOKEN_RATIO), forests(), st.integers(0, 99))
def test_first_update_has_ratio_1_and_clips_nothing(name, preset, f, seed):
    if name == "bypass":
        return
    logp = f.logprob + noise(f, seed, 1.0)
    o = objective(preset, name)
    result = losses(f, o, logp)
    at_one = losses(f, objective(preset, "none"), behaviour(f)).slope
    weights = correct(o.correction, f, logp - f.logprob)
    if not o.correction.needs_path:
        np.testing.assert_allclose(result.slope, weights.token * at_one, rtol=1e-9, atol=1e-15)
    assert not result.clipped.any()


@pytest.mark.parametrize("preset", ["gspo", "treeadv_gspo", "treeadv_gspo_per_leaf"])
@pytest.mark.parametrize("correction", [n for n in NAMES if n != "bypass"])
def test_gspo_does_not_clip_the_noise_between_engine_and_learner(preset, correction):
    """The noise has the size that was measured between a bfloat16 engine and the learner. It moves the ratio of a path
    far outside of +-3.5e-4."""
    f = build([-1, 0, 0, -1], [20, 30, 40, 50], rewards=[1, 0, 1])
    logp = f.logprob + noise(f, 0, 0.06)
    assert losses(f, objective(preset, "bypass"), logp).clipped.mean() > 0.1
    assert not losses(f, objective(preset, correction), logp).clipped.any()


@pytest.mark.parametrize("correction", [n for n in NAMES if n != "bypass"])
def test_gspo_clips_the_move_away_from_the_proximal_policy(correction):
    """The mean ratio of the good leaf is above the clip, so no token has a slope, although one token is below the
    clip."""
    f = build([-1, -1], [2, 2], rewards=[1, 0])
    moved = behaviour(f) + np.array([0.1, -0.05, 0.01, 0.01])
    result = losses(f, objective("gspo", correction), moved, proximal=behaviour(f))
    np.testing.assert_array_equal(result.slope == 0, [True, True, False, False])


def test_clipping_counts_tokens_whose_slope_it_stopped():
    f = build([-1, -1], [2, 2], rewards=[1, 0])
    # In the good leaf the first token is above the clip. In the bad leaf the first token is below the clip
    moved = behaviour(f) + np.log([1.5, 0.5, 0.5, 1.5])
    result = losses(f, objective("treeadv", "none"), moved, proximal=behaviour(f))
    np.testing.assert_array_equal(result.clipped, [1, 0, 1, 0])
    np.testing.assert_array_equal(result.slope == 0, [True, False, True, False])


@pytest.mark.parametrize(("dual_clip", "stopped"), [(3.0, True), (5.0, False), (0.0, False)])
def test_dual_clip_stops_negative_advantages_at_its_ratio(dual_clip, stopped):
    """In dual-clip PPO (Ye et al. 2020) the gain is at least c A for A < 0."""
    spec = AdvantageSpec(dual_clip=dual_clip)
    moved = behaviour(ONE_TOKEN_EACH) + np.log([1.0, 4.0])
    result = losses(ONE_TOKEN_EACH, Objective(spec=spec), moved, proximal=behaviour(ONE_TOKEN_EACH))
    ratio = dual_clip if stopped else 4.0
    assert result.loss[1] / -result.loss[0] == pytest.approx(ratio) and (result.slope[1] == 0) == stopped


def test_dual_clip_inside_the_clip_is_refused():
    with pytest.raises(ValueError, match=r"dual_clip=1.1 must be above 1 \+ clip\[1\] = 1.2, or 0"):
        AdvantageSpec(dual_clip=1.1)


def test_cispo_clips_the_weight_and_keeps_the_gradient():
    """The loss is -sg[clip(r)] A log pi (MiniMax-M1, equation 4), so a token outside of the clip still has a
    gradient."""
    f = build([-1, -1], [2, 2], rewards=[1, 0])
    ratio = np.array([1.5, 9.0, 0.5, 9.0])
    moved = behaviour(f) + np.log(ratio)
    result = losses(f, objective("cispo", "none"), moved, proximal=behaviour(f))
    A = np.array([1.0, 1.0, -1.0, -1.0]) * (0.5 / (np.sqrt(0.5) + 1e-6)) / 4
    np.testing.assert_allclose(result.slope, -np.minimum(ratio, 5.0) * A, rtol=1e-12)
    np.testing.assert_allclose(result.loss, -np.minimum(ratio, 5.0) * A * moved, rtol=1e-12)
    np.testing.assert_array_equal(result.clipped, [0, 1, 0, 1])


@pytest.mark.parametrize("correction", NAMES)
@pytest.mark.parametrize("preset", PRESET_NAMES)
def test_no_preset_is_refused_under_any_correction(preset, correction):
    advantage = {"clip": (0.2, 0.28), "dual_clip": 0}
    learner = LearnerConfig(preset=preset, correction=correction, kl=0.1, kl_estimator="k2", advantage=advantage)
    o = build_objective(learner, SamplingConfig(leaves=4, max_tokens=8))
    spec = PRESETS[preset].advantage.model_copy(update={"clip": (0.2, 0.28), "dual_clip": 0.0})
    assert o == Objective(spec=spec, correction=CORRECTIONS[correction], kl=0.1, kl_estimator="k2", room=32)


def test_almost_certain_tokens_are_not_trained_under_spo():
    f = build([-1, -1], [2, 2], rewards=[1, 0])
    f = dataclasses.replace(f, logprob=np.log([0.95, 0.5, 0.5, 0.91]).astype(np.float32))
    result = losses(f, objective("spo_tree", "tis"), behaviour(f))
    np.testing.assert_array_equal(result.slope == 0, [True, False, False, True])
    np.testing.assert_array_equal(result.masked, [1, 0, 0, 1])


# ---- KL --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("estimator", "gradient"),
    [
        ("k1", "none"),
        ("k2", "KL(pi || reference)"),
        ("k3", "KL(reference || pi)"),
    ],
)
def test_expected_gradient_of_each_kl_estimator(estimator, gradient):
    """The expected gradient is the sum of pi(t) slope(t) d log pi(t) / d logits over all tokens t of a small
    vocabulary."""
    rng = np.random.default_rng(0)
    logits = torch.tensor(rng.normal(size=5), requires_grad=True)
    reference = torch.tensor(rng.normal(size=5)).log_softmax(0)
    logp = logits.log_softmax(0)
    divergence = {
        "none": 0.0 * logits.sum(),
        "KL(pi || reference)": (logp.exp() * (logp - reference)).sum(),
        "KL(reference || pi)": (reference.exp() * (reference - logp)).sum(),
    }[gradient]
    (want,) = torch.autograd.grad(divergence, logits, retain_graph=True)
    f = build([-1] * 5, [1] * 5, rewards=[1] * 5)  # equal rewards leave only the KL term
    o = Objective(spec=AdvantageSpec(), kl=1.0, kl_estimator=estimator)
    slope = evaluate(f, o, 1.0, logp.detach().numpy(), reference=reference.numpy()).slope
    (got,) = torch.autograd.grad((logp.exp().detach() * torch.from_numpy(slope) * logp).sum(), logits)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


def test_leaf_path_ratio_is_the_geometric_mean_along_the_path():
    f = build([-1, 0, 0], [2, 1, 3], rewards=[1, 0])
    log_r = np.arange(6) / 10.0
    spec = AdvantageSpec(
        ratio="leaf_path", normaliser="constant", clip=(0.9, 9.0), dual_clip=0.0, weight="per_leaf", scale="none"
    )
    slope = evaluate(f, Objective(spec=spec), 1.0, behaviour(f) + log_r, behaviour(f)).slope
    mean = path_sum(f, np.add.reduceat(log_r, f.start[:-1]))[f.leaf_segment] / path_sum(f, f.lengths)[f.leaf_segment]
    np.testing.assert_allclose(slope[f.start[1]], -0.5 * np.exp(mean[0]))
    np.testing.assert_allclose(slope[f.start[2]], 0.5 * np.exp(mean[1]))
