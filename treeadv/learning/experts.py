"""Computes mixtures of experts in the dtype of autocast, for unchanged Hugging Face models.

PyTorch's autocast does not change the dtype of grouped products. Without this module, a single rank would multiply
experts and add their adapters in float32. Several ranks gather the weights in bfloat16, so they would compute in
bfloat16."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.utils.parametrize import is_parametrized
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, grouped_mm_experts_forward

NAME = "treeadv"


def choose(model: Any) -> None:
    """Let the experts of a model follow autocast if the model uses grouped products. Other models do not change."""
    if model.config._experts_implementation == "grouped_mm" and model._can_set_experts_implementation():
        model.set_experts_implementation(NAME)


def _experts(module: torch.nn.Module, hidden: torch.Tensor, *routing: torch.Tensor) -> torch.Tensor:
    """Return the output [N, H] of the experts for `hidden` [N, H] and the routing of each row.

    The products have the dtype of autocast if autocast is on."""
    device = hidden.device.type
    if not torch.is_autocast_enabled(device):
        return grouped_mm_experts_forward(module, hidden, *routing)
    cast: Any = _Cast(module, torch.get_autocast_dtype(device))  # Transformers casts the rows to its dtype
    return grouped_mm_experts_forward(cast, hidden, *routing)


class _Cast:
    """A view of a module that converts its floating-point tensors to another dtype. Gradients pass through."""

    def __init__(self, module: torch.nn.Module, dtype: torch.dtype) -> None:
        self._module, self._dtype = module, dtype

    def __getattr__(self, name: str) -> Any:
        if is_parametrized(self._module, name):
            return self._adapted(name)
        value = getattr(self._module, name)
        return value.to(self._dtype) if torch.is_tensor(value) and value.is_floating_point() else value

    def _adapted(self, name: str) -> torch.Tensor:
        """Return the parameter `name` plus its LoRA adapter.

        peft adds the two in the dtype of the parameter, which is float32 on one rank and bfloat16 on several ranks.
        This method rounds both first, so that one rank and several ranks multiply equal weights."""
        parameter = self._module.parametrizations[name]  # type: ignore[index,union-attr]
        weight = parameter.original.to(self._dtype)  # type: ignore[union-attr]
        for adapter in parameter:  # type: ignore[union-attr]
            lhs, rhs = adapter.lhs.to(self._dtype), adapter.rhs.to(self._dtype)
            weight = torch.baddbmm(weight, lhs, rhs, alpha=adapter.scaling)
        return weight


ALL_EXPERTS_FUNCTIONS.register(NAME, _experts)
