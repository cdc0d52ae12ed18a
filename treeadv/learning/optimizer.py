"""Builds AdamW with the settings of the configuration, and computes its learning rate."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from treeadv.config import LearnerConfig, RunConfig


def build_optimizer(parameters: Sequence[torch.nn.Parameter], c: LearnerConfig) -> torch.optim.AdamW:
    """Return AdamW over the trained parameters. Weight decay applies to matrices, not to vectors (norms and biases)."""
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": c.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=c.lr, betas=c.betas, eps=c.adam_eps, fused=True)


def apply_settings(optimizer: torch.optim.Optimizer, c: LearnerConfig) -> None:
    """Set the settings of the configuration again, because loading a checkpoint replaces them by those of the
    checkpoint.
    """
    for group in optimizer.param_groups:
        decays = bool(group["params"]) and group["params"][0].ndim >= 2
        group.update(betas=c.betas, eps=c.adam_eps, weight_decay=c.weight_decay if decays else 0.0)


def learning_rate(c: LearnerConfig, run: RunConfig, step: int, update: int = 0) -> float:
    """Return the learning rate of update number `update` (from 0) of the step that follows `step` finished steps.

    The rate rises linearly over `warmup_steps`. Then the rate is constant, or follows a cosine that reaches 0 at the
    end of step `decay_steps`."""
    done, warmup = step * c.updates_per_step + update, c.warmup_steps * c.updates_per_step
    if done < warmup:
        return c.lr * (done + 1) / warmup
    if c.schedule == "constant":
        return c.lr
    last = (c.decay_steps or run.steps) * c.updates_per_step
    share = min(1.0, (done - warmup) / max(1, last - warmup))
    return c.lr * 0.5 * (1.0 + math.cos(math.pi * share))
