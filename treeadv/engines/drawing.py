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
    if any(p.top_p < 1 for p in params):
        logp = _nucleus(logp, torch.tensor([p.top_p for p in params]))
    prob = logp.exp()
    cumulative = prob.cumsum(-1, dtype=torch.float64)
    target = torch.tensor(coins, dtype=torch.float64) * cumulative[:, -1]
    token = torch.searchsorted(cumulative, target[:, None], right=True)[:, 0]
    greedy = torch.tensor([p.temperature == 0 for p in params])
    token = torch.where(greedy, logp.argmax(-1), token)
    picked = logp.gather(-1, token[:, None])[:, 0].clamp(max=0.0)
    return list(zip(token.tolist(), picked.tolist(), entropy(logp).tolist(), strict=True))


def _nucleus(logp: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Keep the smallest set of tokens whose probability reaches top_p (at least one), renormalised."""
    ordered, index = logp.sort(dim=-1, descending=True)
    before = ordered.exp().cumsum(-1) - ordered.exp()
    kept = ordered.masked_fill(before >= top_p[:, None], float("-inf"))
    return torch.full_like(logp, float("-inf")).scatter(-1, index, kept).log_softmax(-1)
