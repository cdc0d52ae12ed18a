"""Tests that a forest packed with every token once gives the loss and the gradients of its flattened leaves."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from tests.learning import flat, tiny
from tests.strategies import build, forests
from treeadv.forest import Forest
from treeadv.learning import packing
from treeadv.learning.correction import CORRECTIONS
from treeadv.learning.objective import Objective
from treeadv.learning.report import Phases
from treeadv.learning.trainer import Trainer
from treeadv.presets import PRESETS

NO_SHRINK = [Phase.explicit, Phase.reuse, Phase.generate]  # shrinking would take too long


@functools.cache
def pair(family: str, dtype: torch.dtype, seed: int = 0) -> tuple[Trainer, torch.nn.Module]:
    """Return a trainer, and a model with the same weights and its own attention."""
    with tempfile.TemporaryDirectory() as place:
        where = tiny.folder(Path(place), family, seed)
        trainer = Trainer(tiny.config(), where)
        model = AutoModelForCausalLM.from_pretrained(where, dtype=dtype, attn_implementation="sdpa").eval()
    trainer.policy.to(dtype)
    for module in [*trainer.policy.modules(), *model.modules()]:
        if dtype == torch.float64 and type(module).__name__.endswith("RMSNorm"):
            module.forward = functools.partial(_rms_norm, module)  # the attention of transformers rounds to float32
    return trainer, model


def _rms_norm(module: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    return module.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + module.variance_epsilon)


def current(model: torch.nn.Module, f: Forest) -> np.ndarray:
    """Return the log-probs [T] of the forest's tokens from the flattened model."""
    out = np.zeros(f.tokens)
    with torch.no_grad():
        for leaf, logp in enumerate(flat.log_probs(model, f)):
            at = flat.on_leaf(f, np.arange(f.tokens), leaf).long().numpy()
            out[at] = logp.numpy()
    return out


# The reference has no credit at the branches of merged prefixes. tests/learning/test_rivals.py tests it (tempo)
ON_DRAWN_TREES = sorted(name for name, preset in PRESETS.items() if preset.advantage.tree != "merged")


def gradient(p: torch.nn.Parameter) -> torch.Tensor:
    """Return the gradient of a parameter. If no forest can change the weights, no gradient is computed, and the result
    is 0."""
    return torch.zeros_like(p) if p.grad is None else p.grad


def check(
    trainer: Trainer, model: torch.nn.Module, batch: list[Forest], preset: str, limit: int, tolerance: float
) -> None:
    spec = PRESETS[preset].advantage
    trainer.objective, trainer.limit, trainer.reference = (
        Objective(spec=spec, correction=CORRECTIONS["bypass"], room=70),
        limit,
        None,
    )
    batch = [tiny.with_behaviour(f, current(model, f), 0.2, n) for n, f in enumerate(batch)]
    model.zero_grad()
    want = flat.loss(model, batch, spec, room=70)
    want.backward()
    loss = want.item()
    got = trainer.gradients(batch, Phases("cpu")).loss
    assert got == pytest.approx(loss, rel=tolerance, abs=tolerance)
    ours = dict(trainer.policy.model.named_parameters())
    size = max(float(p.grad.norm()) for p in model.parameters())
    for name, p in model.named_parameters():
        error = float((gradient(ours[name]) - p.grad).norm())
        assert error <= tolerance * max(float(p.grad.norm()), size), f"{name}: {error} of {size}"


@pytest.mark.parametrize("family", tiny.FAMILIES)
@settings(max_examples=15, deadline=None, phases=NO_SHRINK)
@given(
    st.lists(forests(max_segments=12), min_size=1, max_size=3),
    st.sampled_from(ON_DRAWN_TREES),
    st.sampled_from([12, 30, 1000]),
)
def test_loss_and_gradients_of_random_forests_in_float32(family, batch, preset, limit):
    check(*pair(family, torch.float32), batch, preset, limit, 1e-5)


@pytest.mark.parametrize("family", ["smollm", "qwen3"])
@settings(max_examples=10, deadline=None, phases=NO_SHRINK)
@given(
    st.lists(forests(max_segments=12), min_size=1, max_size=2),
    st.sampled_from(ON_DRAWN_TREES),
    st.sampled_from([12, 1000]),
)
def test_loss_and_gradients_of_random_forests_in_float64(family, batch, preset, limit):
    check(*pair(family, torch.float64), batch, preset, limit, 1e-10)


SHAPES = {
    "single leaf": build([-1], [6]),
    "single tree": build([-1, 0, 0], [3, 2, 4]),
    "leaf of one token": build([-1, 0, 0, -1], [1, 1, 1, 1], prompt=1),
    "deep chain of forks": build([-1, 0, 0, 2, 2, 4, 4, 6, 6], [2] * 9),
    "wide fork": build([-1] + [0] * 12, [3] + [2] * 12),
    "a branch was lost": build([-1, 0, 0, -1, 3], [3, 2, 2, 2, 3], lost={0: 1, 3: 1}),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("preset", ["treeadv", "gspo", "unbiased"])
def test_loss_and_gradients_of_extreme_shapes(shape, preset):
    check(*pair("llama", torch.float64), [SHAPES[shape], SHAPES["single tree"]], preset, 9, 1e-10)


@given(st.lists(forests(), min_size=1, max_size=3), st.integers(6, 60) | st.just(1 << 40))
def test_pieces_cover_every_segment_once_within_the_limit(batch, limit):
    parts = packing.pieces(batch, limit)
    for n, f in enumerate(batch):
        assert [s for p in parts if p.forest == n for s in range(p.first, p.last)] == list(range(f.segments))
    assert all(p.tokens <= limit or p.last == p.first + 1 for p in parts)
    bins = packing.group(parts, limit)
    assert sorted(map(id, parts)) == sorted(id(p) for b in bins for p in b)
    assert all(len(b) == 1 or sum(p.tokens for p in b) <= limit for b in bins)


@given(forests(losses=True))
def test_micro_batch_holds_each_predicting_token_once(f):
    packed = packing.pack([f], packing.pieces([f], 10**6))
    last = f.start[f.leaf_segment + 1] - 1
    fed = np.delete(f.token, last[f.arity[f.leaf_segment] == 0])
    assert packed.token.tolist() == [*f.prompt, *fed]
    assert packed.target.tolist() == f.token.tolist()
    assert len(packed.row) == len(np.unique(packed.source))


def test_last_token_of_a_parent_gives_its_logits_once():
    f = build([-1, 0, 0, 0], [2, 3, 1, 2], prompt=3)
    packed = packing.pack([f], packing.pieces([f], 100))
    first = packed.source[f.start[1:4]]
    assert len(set(first.tolist())) == 1
    assert packed.row[first[0]] == len(f.prompt) + 1  # the second token of the root


def test_logits_exist_for_at_most_one_slice_of_rows(monkeypatch):
    trainer, _ = pair("llama", torch.float32)
    rows: list[int] = []
    head = trainer.policy.model.get_output_embeddings()
    hook = head.register_forward_hook(lambda _m, inputs, _out: rows.append(len(inputs[0])))
    monkeypatch.setattr("treeadv.learning.policy.HEAD_ROWS", 4)
    f = build([-1, 0, 0, 2, 2, -1], [2, 3, 1, 2, 4, 5])
    try:
        check(*pair("llama", torch.float32), [f], "treeadv", 1000, 1e-5)
    finally:
        hook.remove()
    assert max(rows) <= 4 and len(rows) > 4
