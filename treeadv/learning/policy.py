"""The trained model, which wraps an unchanged Hugging Face causal language model.

It maps micro-batches to log-probs.
"""

from __future__ import annotations

import warnings
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from treeadv.errors import BadInput
from treeadv.learning import attention
from treeadv.learning.packing import Packed

HEAD_ROWS = 512  # rows whose vocabulary logits exist at one time


class Policy(nn.Module):
    """The model that computes log pi of every target of a micro-batch.

    `forward` is one call, so FSDP gathers embedding and head once."""

    def __init__(self, model: PreTrainedModel, device: torch.device) -> None:
        """Wrap a model that will be on `device`. The parameters may still be on the meta device."""
        super().__init__()
        self.model: Any = model
        self.device = device
        self.flex = self.device.type == "cuda"  # whether the mask is a FlexAttention block mask
        self.adapted = False
        self.float32_head = False  # whether logits are computed in float32 even under autocast
        self.vocabulary: int = model.config.vocab_size

    def adapt(self, rank: int) -> None:
        """Freeze the weights and add a LoRA adapter of `rank` to every linear layer and expert (peft, alpha = 2 rank).

        Head and routers get no adapter. peft would replace the module of a router, but the model also reads attributes
        of this module other than the weight.
        """
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError as e:
            raise BadInput(f"learner.lora_rank={rank}: the package peft is not installed (pip install peft)") from e
        lora = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear")
        with warnings.catch_warnings():  # peft warns that each fused expert parameter has one adapter, as intended
            warnings.simplefilter("ignore")
            self.model = inject_adapter_in_model(lora, self.model, low_cpu_mem_usage=True)
        for name, module in list(self.model.named_modules()):
            if getattr(module, "parameter_name", None) == "weight":  # the module is a router
                self.model.set_submodule(name, module.get_base_layer())
        self.adapted = True

    def recompute_activations(self) -> None:
        """Compute the activations of a layer again in the backward pass instead of keeping them.

        Transformers recomputes a layer that is in training mode. All other modules stay in evaluation mode, because
        some models add noise in training mode, for example to the input of a router. Raises `BadInput` for a model
        whose layers cannot be recomputed."""
        layers = [m for m in self.model.modules() if isinstance(m, GradientCheckpointingLayer)]
        if not layers or not self.model.supports_gradient_checkpointing:
            name = type(self.model).__name__
            raise BadInput(f"learner.checkpoint_activations=true: {name} cannot recompute its layers; set it to false")
        self.model.gradient_checkpointing_enable({"use_reentrant": False})
        for layer in layers:
            layer.training = True

    def forward(self, packed: Packed) -> torch.Tensor:
        """Return [T] float32 (float64 for a float64 model): log-probs of the targets under logits / temperature.

        Each target is conditioned on its path."""
        # `split` replaces slices, because the gradient of a slice is as large as the whole tensor
        hidden = self._hidden(packed)[self._tensor(packed.row)].split(HEAD_ROWS)
        temperature = self._tensor(packed.temperature).split(HEAD_ROWS)
        order = np.argsort(packed.source, kind="stable")  # the targets of one slice of rows become adjacent
        row, target = (
            self._tensor(packed.source[order]),
            self._tensor(packed.target[order]),
        )  # two copies to the device, before the loop
        first = range(0, len(packed.row), HEAD_ROWS)
        bounds = [*np.searchsorted(packed.source[order], first).tolist(), len(order)]
        out = []
        for a, (i, j), h, t in zip(first, pairwise(bounds), hidden, temperature, strict=True):
            args = self.model.get_output_embeddings(), h, t, row[i:j] - a, target[i:j], self.float32_head
            out.append(_log_probs(*args) if len(first) == 1 else checkpoint(_log_probs, *args, use_reentrant=False))
        return torch.cat(out)[self._tensor(np.argsort(order))]

    def _tensor(self, x: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(x).to(self.device)

    def _hidden(self, packed: Packed) -> torch.Tensor:
        """Return the hidden states [N, H] of the rows, which attend to their ancestors.

        Without blocks a row attends to all earlier rows by the model's own attention."""
        tokens, position = self._tensor(packed.token)[None], self._tensor(packed.position)[None]
        mask: dict[str, object] = {}
        if packed.blocks:  # only the mask that is used, as dense masks of a long forest take seconds and hundreds of MB
            mask = (
                {"attention_mask": attention.flex_mask(packed, self.device)}
                if self.flex
                else {"tree": attention.sdpa_blocks(packed)}
            )
        return self.model.get_decoder()(
            input_ids=tokens, position_ids=position, use_cache=False, **mask
        ).last_hidden_state[0]


def _log_probs(
    head: nn.Module,
    hidden: torch.Tensor,
    temperature: torch.Tensor,
    row: torch.Tensor,
    target: torch.Tensor,
    float32: bool,
) -> torch.Tensor:
    """Return log-probs [T] from hidden [U, H] and temperature [U].

    The logits and the softmax of a row are computed once for all targets of the row."""
    if float32:
        with torch.autocast(hidden.device.type, enabled=False):
            logits = head(hidden.to(next(head.parameters()).dtype))
    else:
        logits = head(hidden)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    logits.div_(temperature[:, None].to(logits.dtype))
    return logits[row, target] - torch.logsumexp(logits, -1)[row]
