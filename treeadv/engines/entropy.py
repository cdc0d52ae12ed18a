"""The entropy of a distribution over tokens."""

from __future__ import annotations

import torch


def entropy(logp: torch.Tensor, prob: torch.Tensor | None = None) -> torch.Tensor:
    """Return the entropy in nats [...] of distributions with log-probabilities `logp` [..., V].

    A token with log-probability -inf adds 0. `prob` is exp(logp). A caller that has computed it may pass it.
    """
    prob = logp.exp() if prob is None else prob
    return (-torch.linalg.vecdot(prob, logp.clamp(min=-1e4))).clamp(min=0.0)
