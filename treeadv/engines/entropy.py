"""The entropy of a distribution over tokens."""

from __future__ import annotations

import torch


def entropy(logp: torch.Tensor) -> torch.Tensor:
    """Entropy in nats [...] of the distributions with log-probabilities `logp` [..., V]. A token with log-probability
    -inf adds 0.
    """
    return (-(logp.exp() * logp.clamp(min=-1e4)).sum(-1)).clamp(min=0.0)
