"""TRL's GRPO and GSPO loss on sequences without a TRL trainer. The tests and the benchmark of the learner use it as a
reference.

The module calls the unchanged `GRPOTrainer._compute_loss` with an object that holds only the settings that this
method reads."""

from __future__ import annotations

from collections import defaultdict
from contextlib import nullcontext
from types import MethodType, SimpleNamespace
from typing import Any

import torch
from transformers import PreTrainedModel


def prepare(model: PreTrainedModel, temperature: float) -> None:
    """Add TRL's fused head to a model in place, as TRL's trainer does."""
    from trl.trainer.utils import add_fused_lm_head

    add_fused_lm_head(model, temperature=temperature, outputs=("log_probs", "entropy"))


def loss(
    model: torch.nn.Module,
    batch: dict[str, torch.Tensor],
    loss_type: str,
    level: str,
    clip: tuple[float, float],
    beta: float = 0.0,
    max_tokens: int = 1,
    autocast: torch.dtype | None = None,
    delta: float | None = None,
) -> torch.Tensor:
    """Return the loss of a batch as TRL's trainer computes it in one process for one window of gradient accumulation.

    `batch` holds prompt_ids, prompt_mask [B, P], completion_ids, completion_mask [B, T], advantages [B],
    old_per_token_logps [B, T], and ref_per_token_logps [B, T] if beta > 0. `loss_type` is grpo (mean over
    sequences), bnpo (mean over tokens) or dr_grpo (a constant denominator). `level` is token (GRPO) or sequence
    (GSPO). `delta` is the bound of TRL's dual clip."""
    from trl.trainer.grpo_trainer import GRPOTrainer

    accelerator = SimpleNamespace(
        autocast=lambda: torch.autocast("cpu", autocast) if autocast else nullcontext(),
        reduce=lambda x, reduction: x,
        gather=lambda x: x,
        gather_for_metrics=lambda x: x,
        num_processes=1,
        is_main_process=True,
        sync_gradients=True,
    )
    args = SimpleNamespace(use_bias_correction_kl=False, delta=delta, steps_per_generation=1)
    trainer: Any = SimpleNamespace(
        model=model,
        args=args,
        accelerator=accelerator,
        loss_type=loss_type,
        importance_sampling_level=level,
        beta=beta,
        epsilon_low=clip[0],
        epsilon_high=clip[1],
        max_completion_length=max_tokens,
        current_gradient_accumulation_steps=1,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=False,
        vllm_importance_sampling_correction=False,
        aux_loss_enabled=False,
        _entropy_bonus_enabled=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
    )
    trainer._get_per_token_logps_and_entropies = MethodType(GRPOTrainer._get_per_token_logps_and_entropies, trainer)
    return GRPOTrainer._compute_loss(trainer, model, batch)
