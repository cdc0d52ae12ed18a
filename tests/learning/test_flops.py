"""Tests the model FLOPs against the count of torch for a flat forward and backward pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from tests.learning import tiny
from tests.strategies import build
from treeadv.learning import flops
from treeadv.learning.policy import Policy


def counted(model: torch.nn.Module, tokens: int) -> int:
    """Return the count of torch, which includes masked pairs of query and key."""
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.arange(tokens)[None] % tiny.VOCAB).logits.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("family", tiny.FAMILIES)  # the heads of qwen3 together are twice as wide as its hidden state
@pytest.mark.parametrize("rank", [0, 3])
def test_training_flops_equal_those_that_torch_counts(family, rank):
    model = AutoModelForCausalLM.from_config(tiny.FAMILIES[family], attn_implementation="eager")
    if rank:
        policy = Policy(model, torch.device("cpu"))
        policy.adapt(rank)
        model = policy.model.to_empty(device="cpu")  # `adapt` leaves the adapter on the meta device
    P, T = 20, 80
    c = model.config
    width = (
        c.num_hidden_layers
        * c.num_attention_heads
        * (getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads)
    )
    unseen = 12.0 * width * ((P + T) ** 2 - (P + T) * (P + T + 1) / 2)
    ours = flops.training_flops(model, [build([-1], [T], prompt=P)]) + unseen
    assert ours == pytest.approx(counted(model, P + T), rel=0.02 if not rank else 0.05)


def test_fork_costs_its_own_tokens_and_visible_keys():
    model = AutoModelForCausalLM.from_config(tiny.FAMILIES["llama"])

    def of(*lengths: int) -> float:
        parents = {1: [-1], 3: [-1, 0, 0]}
        return flops.training_flops(model, [build(parents[len(lengths)], list(lengths), prompt=4)])

    assert of(6, 3, 3) - of(6) == pytest.approx(2 * (of(9) - of(6)))


@pytest.mark.parametrize(
    ("name", "peak"), [("NVIDIA H100 NVL", 835e12), ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA Unknown", None)]
)
def test_utilisation_uses_the_peak_of_the_device(monkeypatch, name, peak):
    model = AutoModelForCausalLM.from_config(tiny.FAMILIES["llama"])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
    f = build([-1], [5])
    share = flops.utilisation(model, [f], 2.0, "cuda")
    assert share is None if peak is None else np.isclose(share, flops.training_flops(model, [f]) / 2.0 / peak)
