"""Mixtures of experts in the dtype of autocast, for Hugging Face models as they are.

PyTorch's autocast leaves grouped products alone. Without this, one rank would multiply experts in float32 while several
ranks multiply the weights that they gather in bfloat16."""

from __future__ import annotations

from typing import Any

import torch
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, grouped_mm_experts_forward

NAME = "treeadv"


def choose(model: Any) -> None:
    """Let the experts of a model that multiplies them in groups follow autocast; other models stay as they are."""
    if model.config._experts_implementation == "grouped_mm" and model._can_set_experts_implementation():
        model.set_experts_implementation(NAME)


def _experts(module: torch.nn.Module, hidden: torch.Tensor, *routing: torch.Tensor) -> torch.Tensor:
    """hidden [N, H] and the routing of each row -> [N, H], with products in the dtype of autocast if it is on."""
    device = hidden.device.type
    if not torch.is_autocast_enabled(device):
        return grouped_mm_experts_forward(module, hidden, *routing)
    cast: Any = _Cast(module, torch.get_autocast_dtype(device))  # Transformers casts the rows to its dtype
    return grouped_mm_experts_forward(cast, hidden, *routing)


class _Cast:
    """A module whose floating-point tensors are read in another dtype, with gradient."""

    def __init__(self, module: torch.nn.Module, dtype: torch.dtype) -> None:
        self._module, self._dtype = module, dtype

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._module, name)
        return value.to(self._dtype) if torch.is_tensor(value) and value.is_floating_point() else value


ALL_EXPERTS_FUNCTIONS.register(NAME, _experts)
