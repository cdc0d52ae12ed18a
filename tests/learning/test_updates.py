"""Tests several optimizer updates on one batch: equality with flattened leaves, bitwise resume, and skipped updates."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from tests.learning import flat, tiny
from tests.learning.test_trainer import FORESTS, same, weights_of
from tests.learning.test_tree_equals_flat import current
from tests.strategies import build, forests
from treeadv import config as configuration
from treeadv import wire
from treeadv.forest import Finish, Forest
from treeadv.learning.advantage import advantages
from treeadv.learning.gradient import GradientPass
from treeadv.learning.minibatches import minibatches
from treeadv.learning.report import NonFinite, Phases
from treeadv.learning.trainer import Trainer
from treeadv.learning.truncation import treat_truncated
from treeadv.presets import PRESETS

EQUAL_REWARDS = build([-1, 0, 0, -1], [3, 2, 4, 2], rewards=[1, 1, 1], seed=9, forest_id="equal")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return tiny.folder(tmp_path_factory.mktemp("model"), "smollm")


def drawn(folder: str, spread: float = 0.1) -> list[Forest]:
    """Return forests with log-probs of the starting model plus the noise of an engine."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return [tiny.with_behaviour(f, current(model, f), spread, n) for n, f in enumerate([*FORESTS, EQUAL_REWARDS])]


# ---- against the flattened leaves ------------------------------------------------------------------------------------
@pytest.mark.parametrize("preset", ["treeadv", "gspo", "treeadv_gspo", "unbiased", "cispo", "grpo"])
@pytest.mark.parametrize(
    ("correction", "limit"), [("none", 9), ("tis", 4096), ("sequence_tis", 9), ("geometric_mask", 9)]
)
def test_updates_of_a_batch_equal_those_on_flattened_leaves(folder, preset, correction, limit):
    """The trainer takes two passes of two mini-batches. The reference freezes log pi of the flattened leaves when the
    batch arrives, clips the ratio to it, and takes torch's AdamW steps. The learning rate is so large that later
    updates clip."""
    changes = {"clip": (0.01, 0.01)} if "gspo" in preset else {}
    config = tiny.config(
        preset=preset,
        advantage=changes,
        correction=correction,
        adam_eps=1e-2,
        updates_per_batch=2,
        passes_per_batch=2,
        lr=3e-3,
        tokens_per_microbatch=limit,
        forests_per_step=4,
    )
    batch = drawn(folder, 0.01 if correction == "geometric_mask" else 0.1)
    trainer = Trainer(config, folder)
    report = trainer.step(batch, 0)

    spec, c = PRESETS[preset].advantage.model_copy(update=changes), config.learner
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=c.lr, betas=c.betas, eps=c.adam_eps, weight_decay=0.0)
    proximal = [current(model, f) for f in batch]
    losses = []
    for _ in range(2):
        for members in minibatches(4, 2, config.run.seed, 0):
            optimizer.zero_grad()
            room = config.sampling.leaves * config.sampling.max_tokens
            loss = flat.loss(model, [batch[n] for n in members], spec, room, correction, [proximal[n] for n in members])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), c.clip_grad)
            optimizer.step()
            losses.append(loss.item())
    assert report.version == report.updates == 4 and (report.clip_ratio > 0) == (preset != "cispo")
    assert report.loss == pytest.approx(np.mean(losses), rel=1e-3, abs=1e-5)
    want = {n: p.detach().numpy() for n, p in model.named_parameters()}
    start = {n: p.detach().numpy() for n, p in AutoModelForCausalLM.from_pretrained(folder).named_parameters()}
    moved = np.sqrt(sum(np.square(want[n] - start[n]).sum() for n in want))
    error = np.sqrt(sum(np.square(w - want[n]).sum() for n, w in weights_of(trainer).items()))
    assert error < 1e-4 * moved


def test_second_update_after_an_idle_one_has_ratio_1(folder):
    """The first mini-batch has only forests without a gradient. So the policy at the second update is bitwise the
    policy at the arrival of the batch."""
    config = tiny.config(preset="gspo", updates_per_batch=2, forests_per_step=4)
    first = minibatches(4, 2, config.run.seed, 0)[0]
    batch = [EQUAL_REWARDS if n in first else f for n, f in enumerate([*FORESTS, FORESTS[0]])]
    report = Trainer(config, folder).step(batch, 0)
    assert (report.updates, report.idle_updates, report.clip_ratio) == (1, 1, 0.0)


@pytest.mark.parametrize("correction", ["none", "tis", "sequence_tis", "decoupled", "geometric_mask"])
def test_gspo_clips_nothing_while_the_weights_stand_still(folder, correction):
    """The trainer uses bfloat16 and cuts forests. Every later pass computes bitwise the log-probs of the proximal
    policy, for any log-probs of the engine."""
    config = tiny.config(
        preset="treeadv_gspo", correction=correction, dtype="bfloat16", lr=1e-12, updates_per_batch=2,
        passes_per_batch=2, tokens_per_microbatch=16,
    )  # fmt: skip
    report = Trainer(config, folder).step(FORESTS, 0)
    assert report.updates == 4 and report.mismatch_kl > 0.01 and report.clip_ratio == 0


@given(st.integers(1, 20), st.integers(1, 8), st.integers(0, 9))
def test_minibatches_hold_every_forest_once_in_equal_shares(forests, updates, version):
    plan = minibatches(forests, updates, 7, version)
    assert sorted(n for batch in plan for n in batch) == list(range(forests))
    assert len(plan) == min(forests, updates) and max(map(len, plan)) - min(map(len, plan)) <= 1
    assert plan == minibatches(forests, updates, 7, version)


def test_minibatches_differ_by_seed_and_version():
    plans = [minibatches(12, 3, seed, version) for seed in (0, 1) for version in (0, 3)]
    assert all(a != b for i, a in enumerate(plans) for b in plans[:i])


# ---- versions, staleness, resume -------------------------------------------------------------------------------------
def test_versions_count_updates_and_lag_is_not_staleness(folder):
    trainer = Trainer(tiny.config(updates_per_batch=3), folder)
    first, second = trainer.step(FORESTS, 0), trainer.step(FORESTS, 3)
    assert (first.version, second.version, trainer.steps) == (3, 6, 2)
    assert first.staleness == [0, 0, 0] and second.staleness == [3, 3, 3]
    assert sorted(second.publication_lag) == [0, 1, 2]


def test_batch_interrupted_between_updates_repeats_bitwise(folder, tmp_path, monkeypatch):
    config = tiny.config(updates_per_batch=3, passes_per_batch=2, preset="gspo")
    whole, broken = Trainer(config, folder), Trainer(config, folder)
    for trainer in (whole, broken):
        trainer.step(FORESTS, 0)
    broken.save(tmp_path / "step-1")
    want = whole.step(FORESTS, 6)
    take, taken = broken.optimizer.step, []

    def dies_at_third():
        if len(taken) == 2:
            raise KeyboardInterrupt
        taken.append(take())

    monkeypatch.setattr(broken.optimizer, "step", dies_at_third)
    with pytest.raises(KeyboardInterrupt):
        broken.step(FORESTS, 6)
    resumed = Trainer(config, str(tmp_path / "step-1"), base_dir=folder)
    resumed.restore(tmp_path / "step-1")
    got = resumed.step(FORESTS, 6)
    assert (got.loss, got.grad_norm, got.version) == (want.loss, want.grad_norm, 12)
    assert same(weights_of(whole), weights_of(resumed))


# ---- updates that are not finite -------------------------------------------------------------------------------------
@pytest.fixture
def poisoned(folder, tmp_path, monkeypatch):
    """Return a trainer whose gradient is infinite in every update that trains on forest f0."""
    trainer = Trainer(tiny.config(updates_per_batch=3, max_nonfinite=2), folder, keep_dir=tmp_path)
    weight, poison = trainer.policy.model.get_input_embeddings().weight, []
    weight.register_hook(lambda g: g * (torch.inf if poison else 1.0))
    accumulate = GradientPass.accumulate

    def watched(self, update, clock):
        poison[:] = [f for f in update.forests if f.forest_id.startswith("f0")]
        return accumulate(self, update, clock)

    monkeypatch.setattr(GradientPass, "accumulate", watched)
    return trainer


def test_nonfinite_update_is_skipped_and_its_forests_named(poisoned, tmp_path):
    report = poisoned.step(FORESTS, 0)
    assert (report.version, report.updates, report.nonfinite_updates) == (2, 2, 1)
    assert report.nonfinite_forests == ("f0",) and np.isfinite(report.loss) and np.isfinite(report.grad_norm)
    assert all(np.isfinite(w).all() for w in weights_of(poisoned).values())
    kept, _ = wire.read_file(tmp_path / "nonfinite-version-0.arrow")
    assert [f.forest_id for f in kept] == ["f0", "f1", "f2"]


def test_skipped_update_leaves_no_trace_in_weights_or_optimizer(poisoned):
    before = weights_of(poisoned)
    bad = dataclasses.replace(FORESTS[0], forest_id="f0-again")
    report = poisoned.step([bad], 0)
    assert (report.updates, report.version, report.loss) == (0, 0, 0.0)
    assert same(before, weights_of(poisoned)) and not poisoned.optimizer.state


def test_forest_that_one_pass_trained_is_not_named(poisoned, monkeypatch):
    """The second pass skips a forest of the first pass. This forest was trained, so it must not be dropped."""
    accumulate, calls = GradientPass.accumulate, []

    def second_pass_is_poisoned(self, update, clock):
        calls.append(update)
        sums = accumulate(self, update, clock)
        return dataclasses.replace(sums, loss=np.nan) if len(calls) > 3 else sums

    monkeypatch.setattr(GradientPass, "accumulate", second_pass_is_poisoned)
    poisoned.config = tiny.config(updates_per_batch=3, passes_per_batch=2, max_nonfinite=3)
    report = poisoned.step(FORESTS[1:], 0)
    assert (report.updates, report.nonfinite_updates, report.nonfinite_forests) == (3, 1, ())


def test_batch_of_idle_and_nonfinite_updates_is_a_step(poisoned):
    """Forests without a slope cannot contribute to any update. Only the other forests must be dropped."""
    report = poisoned.step([FORESTS[0], EQUAL_REWARDS, EQUAL_REWARDS], 0)
    assert (report.idle_updates, report.nonfinite_updates, report.nonfinite_forests) == (2, 1, ("f0",))
    assert not report.void and poisoned.steps == 1
    assert poisoned.step([FORESTS[0]], 0).void and poisoned.steps == 1


def test_repeated_nonfinite_updates_raise_with_the_cause(poisoned, tmp_path):
    """A finite update resets the count."""
    for _ in range(2):
        poisoned.step([FORESTS[0]], poisoned.version)
    poisoned.step([FORESTS[1]], poisoned.version)
    for _ in range(2):
        poisoned.step([FORESTS[0]], poisoned.version)
    with pytest.raises(NonFinite, match=r"the gradient of an update is not finite; more updates in a row") as e:
        poisoned.step([FORESTS[0]], poisoned.version)
    assert e.value.batch == tmp_path / "nonfinite-version-1.arrow" and e.value.batch.is_file()


# ---- no work that cannot change the update ---------------------------------------------------------------------------
@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_update_is_bitwise_equal_without_inert_forests(folder, preset, monkeypatch):
    """Each forest fills one micro-batch, so an omitted forest would add only zeros. The normaliser counts all
    forests."""
    config = tiny.config(preset=preset, tokens_per_microbatch=16, correction="tis")
    batch = [EQUAL_REWARDS, FORESTS[0], EQUAL_REWARDS, FORESTS[1]]
    skipping, packing_all = Trainer(config, folder), Trainer(config, folder)
    report = skipping.step(batch, 0)
    monkeypatch.setattr("treeadv.learning.gradient.changes_nothing", lambda f, o: False)
    everything = packing_all.step(batch, 0)
    # With these two baselines a root without comparable roots has baseline 0. Equal rewards then have a gradient
    inert = 0 if PRESETS[preset].advantage.baseline in ("leave_subtree_out", "sibling_loo") else 2
    assert report.forests_without_gradient == inert and everything.forests_without_gradient == 0
    assert report.grad_norm == everything.grad_norm and report.version == everything.version == 1
    assert same(weights_of(skipping), weights_of(packing_all))


def test_inert_forests_in_one_microbatch_change_only_rounding(folder, monkeypatch):
    """A forest without a slope shifts the rows of forests in the same micro-batch, so matrix products round
    differently."""
    batch = [EQUAL_REWARDS, FORESTS[0], EQUAL_REWARDS, FORESTS[1]]
    skipping, packing_all = Trainer(tiny.config(), folder), Trainer(tiny.config(), folder)
    skipping.gradients(batch, Phases("cpu"))
    monkeypatch.setattr("treeadv.learning.gradient.changes_nothing", lambda f, o: False)
    packing_all.gradients(batch, Phases("cpu"))
    pairs = [
        (a.grad, b.grad)
        for a, b in zip(skipping.policy.parameters(), packing_all.policy.parameters(), strict=True)
        if a.grad is not None
    ]
    size = max(float(a.norm()) for a, _ in pairs)
    assert pairs and size > 0 and max(float((a - b).norm()) for a, b in pairs) < 1e-6 * size


def test_batch_that_changes_nothing_takes_no_update(folder):
    trainer = Trainer(tiny.config(), folder)
    before = weights_of(trainer)
    report = trainer.step([EQUAL_REWARDS, EQUAL_REWARDS], 0)
    assert (report.version, report.updates, report.idle_updates, report.forests_without_gradient) == (0, 0, 1, 2)
    assert same(before, weights_of(trainer)) and not trainer.optimizer.state


def test_forest_of_equal_rewards_is_trained_with_kl(folder):
    report = Trainer(tiny.config(kl=0.1), folder).step([EQUAL_REWARDS], 0)
    assert report.updates == 1 and report.forests_without_gradient == 0


@pytest.mark.parametrize(
    ("learner", "twice"),
    [
        ({"preset": "treeadv", "correction": "tis"}, False),
        ({"preset": "gspo", "correction": "tis"}, False),  # with one update the ratio is 1
        ({"preset": "treeadv", "correction": "sequence_tis"}, True),
        ({"preset": "gspo", "correction": "bypass"}, True),
    ],
)
def test_cut_forest_is_passed_twice_only_for_path_ratios(folder, learner, twice):
    trainer = Trainer(tiny.config(tokens_per_microbatch=9, **learner), folder)
    rows = []
    trainer.policy.register_forward_hook(lambda _m, inputs, _out: rows.append(len(inputs[0].token)))
    trainer.gradients([FORESTS[0]], Phases("cpu"))
    once = [len(b.token) for b in trainer._gradient_pass().prepare([FORESTS[0]]).batches]
    assert len(once) > 1 and rows == (once + once if twice else once)


def test_second_pass_of_a_cut_forest_has_equal_micro_batches(folder):
    """In other micro-batches kernels may round differently, and GSPO would clip the difference."""
    trainer = Trainer(tiny.config(tokens_per_microbatch=16), folder)
    update = trainer._gradient_pass().prepare(FORESTS)
    assert 0 < len(update.cut) < len(update.batches)
    assert all(any(again is first for first in update.batches) for again in update.cut)


# ---- options ---------------------------------------------------------------------------------------------------------
def test_float32_head_computes_logits_in_float32_under_bfloat16(folder):
    config = tiny.config(dtype="bfloat16", float32_head=True)
    exact = Trainer(tiny.config(), folder).log_probs(FORESTS)
    rounded, head = (
        Trainer(tiny.config(dtype="bfloat16"), folder).log_probs(FORESTS),
        Trainer(config, folder).log_probs(FORESTS),
    )

    def error(logp: dict[int, np.ndarray]) -> float:
        return float(np.sqrt(np.mean(np.concatenate([logp[n] - exact[n] for n in logp]) ** 2)))

    assert 0 < error(head) < error(rounded)


def test_truncated_leaves_have_a_penalty_by_their_length(folder):
    f = build([-1, 0, 0, -1], [4, 2, 4, 3], rewards=[1, 1, 0])  # leaves of 6, 8 and 3 tokens
    np.testing.assert_allclose(treat_truncated(f, "penalty", 8, 4).reward, [0.5, 0, 0])
    assert treat_truncated(f, "graded", 8, 4) is f


@pytest.mark.parametrize(("penalty_tokens", "penalty"), [(2, 0.0), (4, -0.5), (6, -2 / 3)])
def test_penalty_starts_penalty_tokens_before_the_limit(folder, penalty_tokens, penalty):
    config = tiny.config(truncated="penalty", penalty_tokens=penalty_tokens)
    config = config.model_copy(update={"sampling": config.sampling.model_copy(update={"max_tokens": 8})})
    f = build([-1, 0, 0], [4, 2, 4], rewards=[1, 1])  # leaves of 6 and 8 tokens
    trained = Trainer(config, folder)._trained_forest(f)
    np.testing.assert_allclose(trained.reward, [1 + penalty, 0.0], atol=1e-6)


@given(forests(), st.integers(0, 2**16))
def test_masked_truncation_equals_removing_those_leaves(f, seed):
    cut = np.random.default_rng(seed).random(f.leaves) < 0.4
    assume(not cut.all())
    f = dataclasses.replace(f, finish=np.where(cut, Finish.LENGTH, Finish.STOP).astype(np.int8))
    kept = treat_truncated(f, "masked", 8, 4).judged_part()
    np.testing.assert_array_equal(kept.reward, f.reward[~cut])
    whole = treat_truncated(f, "masked", 8, 4)
    for preset in PRESETS.values():
        A, c = advantages(whole, preset.advantage)
        np.testing.assert_array_equal(A[whole.judged_below], advantages(kept, preset.advantage)[0])
        assert not A[~whole.judged_below].any() and not c[~whole.judged_below].any()


def test_step_survives_a_forest_whose_leaves_are_all_truncated(folder):
    cut = dataclasses.replace(FORESTS[1], finish=np.full(3, Finish.LENGTH, np.int8))
    trainer = Trainer(tiny.config(truncated="masked", kl=0.1), folder)
    report = trainer.step([FORESTS[0], cut], 0)
    assert report.updates == 1 and report.forests_without_gradient == 1
    assert trainer.step([cut], 1).idle_updates == 1


# ---- sampling of a preset --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_flat_presets_set_flat_sampling(preset):
    tasks = {"task": {"families": [{"name": "chain_sum"}]}}
    sampling = configuration.build(tasks, [f"learner.preset={preset}", "sampling.leaves=6"], "test").sampling
    if preset in ("grpo", "gspo", "cispo", "tempo"):
        assert (sampling.rule, sampling.roots) == ("none", 6)
    else:
        assert (sampling.rule, sampling.roots) == ("entropy", 2)


def test_sampling_of_a_preset_can_be_overridden_and_is_recorded():
    tasks = {"task": {"families": [{"name": "chain_sum"}]}}
    overrides = ["learner.preset=grpo", "sampling.rule=entropy", "sampling.trees=2"]
    config = configuration.build(tasks, overrides, "test")
    assert (config.sampling.rule, config.sampling.trees) == ("entropy", 2)
    flat_sampling = configuration.build({"task": tasks["task"]}, ["learner.preset=gspo"], "test")
    recorded = yaml.safe_load(flat_sampling.to_yaml())
    assert (recorded["sampling"]["rule"], recorded["sampling"]["trees"]) == ("none", 8)


def test_proximal_policy_needs_no_copy_of_the_model(folder):
    """The trainer stores the frozen log pi as numbers and keeps only one model."""
    trainer = Trainer(tiny.config(updates_per_batch=2), folder)
    models = [m for m in vars(trainer).values() if isinstance(m, torch.nn.Module)]
    assert len(models) == 1 and copy.copy(trainer.reference) is None and Path(folder).is_dir()
