"""Model FLOPs of a step, and their share of what the device can do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from treeadv.forest import Forest

# Dense bf16 FLOP/s as the vendor states them (data sheets, without sparsity); the first whose name is in the device's.
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
    """FLOPs of one forward and backward over every token once: 6 per trained weight in a matrix product, 4 per
    frozen one (LoRA), 12 per layer, width of all heads and key seen."""
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
    """Share of the device's peak, or None where the peak is not known (a CPU)."""
    if device != "cuda":
        return None
    name = torch.cuda.get_device_name()
    peak = next((v for k, v in _PEAK.items() if k in name), None)
    return training_flops(model, forests) / device_seconds / peak if peak else None
