"""Model FLOPs of a step, and their share of what the device can do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from treeadv.forest import Forest

# Dense bf16 FLOP/s as the vendor states them (data sheets, without sparsity).
_PEAK = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12}


def training_flops(model: Any, forests: Sequence[Forest]) -> float:
    """FLOPs of one forward and backward over every token once: 6 per weight in a matrix product, 12 per layer, width and key seen."""
    table = model.get_input_embeddings().weight.numel()
    tied = model.config.tie_word_embeddings
    weights = sum(p.numel() for p in model.parameters()) - (0 if tied else table)
    width = model.config.num_hidden_layers * model.config.hidden_size
    total = 0.0
    for f in forests:
        P = len(f.prompt)
        keys = P * (P + 1) / 2 + float(((P + f.offset) * f.lengths + f.lengths * (f.lengths + 1.0) / 2).sum())
        total += 6.0 * weights * (P + f.tokens) + 12.0 * width * keys
    return total


def utilisation(model: Any, forests: Sequence[Forest], device_seconds: float, device: str) -> float | None:
    """Share of the device's peak, or None where the peak is not known (a CPU)."""
    if device != "cuda":
        return None
    name = torch.cuda.get_device_name()
    peak = next((v for k, v in _PEAK.items() if k in name), None)
    return training_flops(model, forests) / device_seconds / peak if peak else None
