"""Compares loss and gradients with an independent reference: TRL's GRPO and GSPO on the expanded leaves."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM

from actors.benchmarks import trl_reference
from tests.learning import flat, tiny
from tests.learning.test_tree_equals_flat import NO_SHRINK, current, gradient, pair
from tests.strategies import build, forests
from treeadv.forest import Forest
from treeadv.learning.advantage import leaf_advantages
from treeadv.learning.correction import CORRECTIONS
from treeadv.learning.minibatches import minibatches
from treeadv.learning.objective import Objective
from treeadv.learning.report import Phases
from treeadv.learning.trainer import Trainer
from treeadv.presets import PRESETS

pytest.importorskip("trl", reason="the reference is TRL's loss: pip install --no-deps trl")

CASES = {
    "grpo over sequences": ("grpo", {"normaliser": "sequence_mean"}, "grpo", "token"),
    "grpo over tokens": ("grpo", {}, "bnpo", "token"),
    "grpo over a constant": ("grpo", {"normaliser": "constant"}, "dr_grpo", "token"),
    "gspo": ("gspo", {}, "grpo", "sequence"),
    "gspo with a wide clip": ("gspo", {"clip": (0.1, 0.1)}, "grpo", "sequence"),
}


def as_batch(f: Forest, own: np.ndarray, reference: np.ndarray) -> dict[str, torch.Tensor]:
    """Return the leaves as TRL's padded batch: equal prompts on the left, completions padded on the right."""

    def pad(rows: list[torch.Tensor]) -> torch.Tensor:
        return pad_sequence(rows, batch_first=True)

    leaves = range(f.leaves)
    prompt = torch.from_numpy(np.tile(f.prompt, (f.leaves, 1))).long()
    return {
        "prompt_ids": prompt,
        "prompt_mask": torch.ones_like(prompt),
        "completion_ids": pad([torch.from_numpy(f.leaf_tokens(i)).long() for i in leaves]),
        "completion_mask": pad([torch.ones(len(f.leaf_tokens(i)), dtype=torch.long) for i in leaves]),
        "advantages": torch.from_numpy(own).float(),
        "old_per_token_logps": pad([flat.on_leaf(f, f.logprob, i).float() for i in leaves]),
        "ref_per_token_logps": pad([flat.on_leaf(f, reference, i).float() for i in leaves]),
    }


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=5, deadline=None, phases=NO_SHRINK)
@given(f=forests(max_segments=10), kl=st.sampled_from([0.0, 0.3]))
def test_loss_and_gradients_equal_those_of_trl(case, f, kl):
    name, changes, loss_type, level = CASES[case]
    spec = PRESETS[name].advantage.model_copy(update={"dual_clip": 0.0, **changes})
    trainer, model = pair("llama", torch.float32)
    f = tiny.with_behaviour(f, current(model, f), 0.15, 1)
    other, reference_model = pair("llama", torch.float32, 1)
    theirs = copy.deepcopy(model)
    trl_reference.prepare(theirs, f.temperature)
    batch = as_batch(f, leaf_advantages(f, spec), current(reference_model, f))
    want = trl_reference.loss(theirs, batch, loss_type, level, spec.clip, kl, max_tokens=9)
    want.backward()
    trainer.objective, trainer.limit = (
        Objective(spec=spec, correction=CORRECTIONS["bypass"], kl=kl, room=9 * f.leaves),
        1000,
    )
    trainer.reference = other.policy if kl else None
    got = trainer.gradients([f], Phases("cpu")).loss
    assert got == pytest.approx(want.item(), rel=1e-4, abs=1e-5)
    ours = dict(trainer.policy.model.named_parameters())
    size = max(float(p.grad.norm()) for p in theirs.parameters())
    for n, p in theirs.named_parameters():
        assert float((gradient(ours[n]) - p.grad).norm()) <= 2e-5 * max(float(p.grad.norm()), size), n


@pytest.mark.parametrize(
    ("case", "changes", "delta"),
    [
        ("grpo over sequences", {"clip": (0.02, 0.02), "dual_clip": 0.0}, None),
        ("grpo over tokens", {"clip": (0.02, 0.03), "dual_clip": 1.04}, 1.04),
        ("grpo over a constant", {"clip": (0.02, 0.02), "dual_clip": 0.0}, None),
        ("gspo", {"clip": (0.005, 0.005), "dual_clip": 0.0}, None),
    ],
)
def test_updates_equal_trl_iterations_over_mini_batches(tmp_path, case, changes, delta):
    """TRL freezes the log-probs once and takes every mini-batch once per iteration, in the same order
    (num_iterations)."""
    name, more, loss_type, level = CASES[case]
    batch = [
        build([-1, 0, 0, 2, 2, -1], [2, 3, 1, 2, 4, 3], rewards=[1, 0, 1, 0], seed=n, forest_id=f"f{n}")
        for n in range(4)
    ]
    config = tiny.config(
        preset=name, advantage=more | changes, correction="none", updates_per_batch=2, passes_per_batch=3, lr=3e-3,
        adam_eps=1e-2, forests_per_step=4,
    )  # fmt: skip
    folder = tiny.folder(tmp_path, "llama")
    config = config.model_copy(update={"sampling": config.sampling.model_copy(update={"leaves": 4, "max_tokens": 9})})
    trainer = Trainer(config, folder)
    report = trainer.step(batch, 0)

    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    trl_reference.prepare(theirs, 1.0)
    frozen = [current(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), f) for f in batch]
    spec = trainer.objective.spec
    leaves = [
        as_batch(dataclasses.replace(f, logprob=old.astype(np.float32)), leaf_advantages(f, spec), old)
        for f, old in zip(batch, frozen, strict=True)
    ]
    c = config.learner
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=c.lr, betas=c.betas, eps=c.adam_eps, weight_decay=0.0)
    losses = []
    for _ in range(3):
        for members in minibatches(4, 2, config.run.seed, 0):
            optimizer.zero_grad()
            together = {k: torch.cat([leaves[n][k] for n in members]) for k in leaves[0]}
            loss = trl_reference.loss(theirs, together, loss_type, level, spec.clip, 0.0, max_tokens=9, delta=delta)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(theirs.parameters(), c.clip_grad)
            optimizer.step()
            losses.append(loss.item())
    assert report.updates == 6 and report.clip_ratio > 0
    assert report.loss == pytest.approx(np.mean(losses), rel=1e-3, abs=1e-5)
    ours = dict(trainer.policy.model.named_parameters())
    start = dict(AutoModelForCausalLM.from_pretrained(folder).named_parameters())
    moved = sum(float((p - start[n]).square().sum()) for n, p in theirs.named_parameters()) ** 0.5
    error = sum(float((ours[n] - p).square().sum()) for n, p in theirs.named_parameters()) ** 0.5
    assert error < 1e-3 * moved
