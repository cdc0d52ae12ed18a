"""Computes the model FLOPs of a step and the model FLOPs utilisation (MFU)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from treeadv.forest import Forest

# Peak bf16 FLOP/s for dense matrices, from the vendor's data sheets. The first key that the name of the device contains
# applies.
_PEAK = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200 NVL": 835e12,
    "H200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
}


def training_flops(model: Any, forests: Sequence[Forest]) -> float:
    """Return the FLOPs of one forward and one backward pass over every token of the forests.

    A token costs 6 FLOPs for each trained weight of a matrix product, and 4 FLOPs for each frozen weight (LoRA).
    Attention costs 12 FLOPs for each layer, each dimension of all heads and each key that a token attends to."""
    c, table = model.config, model.get_input_embeddings().weight
    products = [p for p in model.parameters() if c.tie_word_embeddings or p is not table]
    per_token = sum((6.0 if p.requires_grad else 4.0) * p.numel() for p in products)
    head = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    width = c.num_hidden_layers * c.num_attention_heads * head
    total = 0.0
    for f in forests:
        P = len(f.prompt)
        keys = P * (P + 1) / 2 + float(((P + f.offset) * f.lengths + f.lengths * (f.lengths + 1.0) / 2).sum())
        total += per_token * (P + f.tokens) + 12.0 * width * keys
    return total


def utilisation(model: Any, forests: Sequence[Forest], device_seconds: float, device: str) -> float | None:
    """Return the share of the device's peak FLOP/s in [0, 1], or None for a device without a known peak (a CPU)."""
    if device != "cuda":
        return None
    name = torch.cuda.get_device_name()
    peak = next((v for k, v in _PEAK.items() if k in name), None)
    return training_flops(model, forests) / device_seconds / peak if peak else None
