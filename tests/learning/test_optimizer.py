"""Tests the settings of AdamW and the learning rate, at the start of a run and after a resume with other values."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.learning import tiny
from tests.learning.test_trainer import FORESTS, weights_of
from treeadv import config as configuration
from treeadv.config import Config
from treeadv.errors import BadInput
from treeadv.learning.optimizer import learning_rate
from treeadv.learning.trainer import Trainer


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return tiny.folder(tmp_path_factory.mktemp("model"), "smollm")


def rate(config: Config, step: int, update: int = 0) -> float:
    return learning_rate(config.learner, config.run, step, update)


def test_rate_warms_up_and_follows_a_cosine_to_zero():
    config = tiny.config(steps=10, lr=1.0, warmup_steps=4, schedule="cosine")
    rates = [rate(config, step) for step in range(11)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[7] == pytest.approx(0.5) and rates[10] == pytest.approx(0.0)
    assert all(a > b for a, b in pairwise(rates[4:]))
    assert rate(tiny.config(steps=10, lr=1.0), 9) == 1.0


@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 5))
def test_rate_changes_with_every_update_to_the_same_ends(updates, passes, warmup):
    config = tiny.config(
        steps=10, lr=1.0, warmup_steps=warmup, schedule="cosine", updates_per_batch=updates, passes_per_batch=passes
    )
    each = updates * passes
    rates = [rate(config, step, update) for step in range(10) for update in range(each)]
    top = warmup * each
    assert all(a < b for a, b in pairwise(rates[:top])) and all(a > b for a, b in pairwise(rates[top:]))
    assert max(rates) == 1.0 and rate(config, 10) == pytest.approx(0.0)


def test_step_reports_the_rate_of_its_last_update(folder):
    config = tiny.config(steps=10, lr=1.0, warmup_steps=2, updates_per_batch=3, clip_grad=1e-9)
    assert Trainer(config, folder).step(FORESTS, 0).lr == pytest.approx(0.5)


def resumed(config: Config, *overrides: str) -> Config:
    return configuration.build(config.model_dump(mode="json"), list(overrides), "run/config.yaml")


def test_rate_is_continuous_when_a_resume_changes_the_steps():
    """The start of the run records the end of the cosine."""
    config = tiny.config(steps=10, lr=1.0, schedule="cosine")
    shorter = resumed(config, "run.steps=8")
    assert [rate(config, step) for step in range(8)] == [rate(shorter, step) for step in range(8)]
    with pytest.raises(
        BadInput, match=r"run.steps=20 is beyond learner.decay_steps=10, .*: set learner.decay_steps=20"
    ):
        resumed(config, "run.steps=20")
    assert rate(resumed(config, "run.steps=20", "learner.decay_steps=20"), 10) == pytest.approx(0.5)
    assert resumed(tiny.config(steps=10), "run.steps=20").run.steps == 20


def test_norms_and_biases_do_not_decay(folder):
    trainer = Trainer(tiny.config(weight_decay=0.5, lr=1e-9), folder)
    decay = {id(p): g["weight_decay"] for g in trainer.optimizer.param_groups for p in g["params"]}
    assert len(decay) == len(list(trainer.policy.parameters()))
    assert {decay[id(p)] for p in trainer.policy.parameters() if p.ndim == 1} == {0.0}
    assert {decay[id(p)] for p in trainer.policy.parameters() if p.ndim == 2} == {0.5}


def test_settings_given_at_resume_apply(folder, tmp_path):
    first = Trainer(tiny.config(betas=(0.9, 0.95), weight_decay=0.0), folder)
    first.step(FORESTS, 0)
    first.save(tmp_path / "step-1")
    config = tiny.config(betas=(0.5, 0.6), weight_decay=0.1, adam_eps=1e-4, lr=0.2)
    second = Trainer(config, folder)
    second.restore(tmp_path / "step-1")
    before = weights_of(second)
    second.step(FORESTS, 1)
    assert all((g["betas"], g["eps"], g["lr"]) == ((0.5, 0.6), 1e-4, 0.2) for g in second.optimizer.param_groups)
    assert [g["weight_decay"] for g in second.optimizer.param_groups] == [0.1, 0.0]
    name, p = next((n, p) for n, p in second.policy.model.named_parameters() if p.ndim == 2)
    state = second.optimizer.state[p]
    step = (state["exp_avg"] / (1 - 0.5**2)) / ((state["exp_avg_sq"] / (1 - 0.6**2)).sqrt() + 1e-4)
    want = torch.from_numpy(before[name]) * (1 - 0.2 * 0.1) - 0.2 * step
    torch.testing.assert_close(p.detach(), want, rtol=1e-5, atol=1e-6)
