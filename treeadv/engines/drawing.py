"""Drawing a token from logits, with the exact log-probability and entropy of the distribution drawn from."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from treeadv.engines.base import Params
from treeadv.engines.entropy import entropy


def draw_rows(logits: torch.Tensor, params: Sequence[Params], coins: Sequence[float]) -> list[tuple[int, float, float]]:
    """Draw one token a row by inverting its cumulative distribution at a uniform number.

    logits [B, V]; params [B]; coins [B] in [0, 1). Returns (token, log-probability, entropy in nats) a row. Temperature
    0 takes the largest logit and reports the untempered distribution.
    """
    temperature = torch.tensor([p.temperature or 1.0 for p in params])
    logp = torch.log_softmax(logits.float() / temperature[:, None], dim=-1)
    prob = logp.exp()
    cumulative = prob.cumsum(-1, dtype=torch.float64)
    target = torch.tensor(coins, dtype=torch.float64) * cumulative[:, -1]
    token = torch.searchsorted(cumulative, target[:, None], right=True)[:, 0]
    greedy = torch.tensor([p.temperature == 0 for p in params])
    token = torch.where(greedy, logp.argmax(-1), token)
    picked = logp.gather(-1, token[:, None])[:, 0].clamp(max=0.0)
    return list(zip(token.tolist(), picked.tolist(), entropy(logp).tolist(), strict=True))
