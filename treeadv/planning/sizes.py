"""Computes the sizes of a model from its config.json. This needs no download and no memory for weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from transformers import AutoModelForCausalLM

from treeadv.data.model_check import model_config
from treeadv.learning import attention
from treeadv.learning.loading import chain, no_model, parameters_on_meta
from treeadv.learning.policy import HEAD_ROWS, Policy


@dataclass(frozen=True, kw_only=True)
class ModelSizes:
    """The numbers of parameters and the bytes of activations of a model under a learner configuration."""

    parameters: int
    trained: int  # trained parameters: all parameters, or those of the adapter
    layer: int  # parameters of the largest decoder layer
    outside: int  # parameters of embedding, head and last norm
    cache_elements: int  # numbers in the keys and values of one token, over all layers
    vocabulary: int
    activations: int  # bytes that the forward pass of a micro-batch keeps for the backward pass
    layer_activations: int  # bytes that one layer keeps; with recomputation only one layer keeps them at a time


def model_sizes(config_json: Path, *, tokens: int, compute: torch.dtype, recompute: bool, lora_rank: int) -> ModelSizes:
    """Measure a model on fake tensors, which have shapes but no memory.

    `tokens` is the number of rows of a micro-batch. With `recompute` each layer computes its activations again in the
    backward pass.
    """
    config: Any = model_config(config_json)
    try:
        return _measured(config, tokens, compute, recompute, lora_rank)
    except Exception as e:  # the sizes fit no model; the classes of transformers raise many types
        raise no_model(config_json, e) from e


def _measured(config: Any, tokens: int, compute: torch.dtype, recompute: bool, lora_rank: int) -> ModelSizes:
    with FakeTensorMode(allow_non_fake_inputs=True):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention.NAME)
        policy = Policy(model, torch.device("cpu"))
        layers = model.get_decoder().layers
        total, in_layers = _count(model), _count(layers)
        largest = max(_count(layer) for layer in layers)
        _replace_experts(layers, config)
        plain = _saved_bytes(policy, tokens, compute)
        kept = plain
        if recompute:
            policy.recompute_activations()
            kept = _saved_bytes(policy, tokens, compute)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return ModelSizes(
        parameters=total,
        trained=_adapter(config, lora_rank) if lora_rank else total,
        layer=largest,
        outside=total - in_layers,
        cache_elements=2 * config.num_hidden_layers * config.num_key_value_heads * head_dim,
        vocabulary=config.vocab_size,
        activations=kept,
        layer_activations=plain // len(layers),
    )


def head_bytes(sizes: ModelSizes, tokens: int) -> int:
    """Return the bytes of one slice of logits in float32: the logits, their scaled copy, and the gradients of both."""
    return 4 * 4 * min(tokens, HEAD_ROWS) * sizes.vocabulary


def _adapter(config: Any, rank: int) -> int:
    with parameters_on_meta():
        policy = Policy(AutoModelForCausalLM.from_config(config, dtype=torch.float32), torch.device("meta"))
        policy.adapt(rank)
    return sum(p.numel() for p in policy.parameters() if p.requires_grad)


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _saved_bytes(policy: Policy, tokens: int, compute: torch.dtype) -> int:
    """Return the bytes of the tensors that autograd saves in a forward pass.

    Each storage counts once. Weights do not count.
    """
    half = compute == torch.bfloat16
    if half:  # ranks gather bfloat16 weights; the plan counts copies that autocast makes of float32 weights elsewhere
        for p in policy.model.get_decoder().layers.parameters():
            if p.dim() > 1:
                p.data = p.data.to(compute)
    weights = {p.untyped_storage()._cdata for p in policy.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}

    def pack(t: torch.Tensor) -> torch.Tensor:
        storage = t.untyped_storage()
        if storage._cdata not in weights:
            saved[storage._cdata] = storage
        return t

    autocast = torch.autocast("cpu", torch.bfloat16, enabled=half)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), autocast:
        policy(chain(np.arange(tokens + 1) % policy.vocabulary, 1))
    return sum(s.nbytes() for s in saved.values())


def _replace_experts(layers: nn.ModuleList, config: Any) -> None:
    """Let every row use the first expert.

    Fake tensors have no values to route by, and the number of bytes is the same.
    """

    def forward(module: nn.Module) -> Any:
        gate_up, down = (p for p in module.parameters() if p.dim() == 3)

        def dense(hidden: torch.Tensor, index: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            rows = hidden.repeat_interleave(index.shape[-1], 0)
            gate, up = nn.functional.linear(rows, gate_up[0]).chunk(2, -1)
            out = nn.functional.linear(nn.functional.silu(gate) * up, down[0])
            return (out * weight.reshape(-1, 1)).view(len(hidden), -1, out.shape[-1]).sum(1).to(hidden.dtype)

        return dense

    for module in layers.modules():
        if sum(p.dim() == 3 for p in module.parameters(recurse=False)) == 2:
            module.forward = forward(module)
