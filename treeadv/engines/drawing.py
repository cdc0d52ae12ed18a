"""Draws tokens from logits, with the exact log-probability and entropy of the sampled distribution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from treeadv.engines.base import Params
from treeadv.engines.entropy import entropy

ROWS = 8  # rows that are computed at a time, so that intermediate results stay in the processor's cache
BLOCK = 256  # tokens of a block; the search first sums blocks, and then the tokens of one block in float64


def draw_rows(logits: torch.Tensor, params: Sequence[Params], coins: Sequence[float]) -> list[tuple[int, float, float]]:
    """Draw one token for each row by inverting its cumulative distribution at a uniform number.

    logits [B, V]; params [B]; coins [B] in [0, 1). Returns (token, log-probability, entropy in nats) for each row.
    Temperature 0 takes the largest logit and reports the distribution at temperature 1. Raises `FloatingPointError` for
    logits that define no distribution (NaN, infinity). Diverged weights compute such logits.
    """
    greedy = torch.tensor([p.temperature == 0 for p in params], dtype=torch.bool)
    temperature = torch.tensor([p.temperature or 1.0 for p in params])
    uniform = torch.tensor(coins, dtype=torch.float64)
    drawn: list[tuple[int, float, float]] = []
    for i in range(0, len(params), ROWS):
        some = slice(i, i + ROWS)
        drawn += _draw(logits[some].float() / temperature[some, None], greedy[some], uniform[some])
    return drawn


def _draw(logits: torch.Tensor, greedy: torch.Tensor, coins: torch.Tensor) -> list[tuple[int, float, float]]:
    """Implement `draw_rows` for a few rows of logits that are already divided by the temperature."""
    logp = torch.log_softmax(logits, dim=-1)
    prob = logp.exp()
    token = _invert(prob, coins)
    if greedy.any():
        token = torch.where(greedy, logp.argmax(-1), token)
    picked = logp.gather(-1, token[:, None])[:, 0].clamp(max=0.0)
    return list(zip(token.tolist(), picked.tolist(), entropy(logp, prob).tolist(), strict=True))


def _invert(prob: torch.Tensor, coins: torch.Tensor) -> torch.Tensor:
    """Return [B]: the token at which the cumulative sum of prob [B, V] passes the share coins [B] of the total.

    The search finds the block first and then the token in the block.
    """
    rows = torch.arange(len(prob))
    blocks = F.pad(prob, (0, -prob.shape[1] % BLOCK)).view(len(prob), -1, BLOCK)
    upto = blocks.sum(-1).cumsum(-1, dtype=torch.float64)
    if not torch.isfinite(upto[:, -1]).all():
        raise FloatingPointError("the logits are not finite: the weights have diverged; lower learner.lr")
    target = torch.minimum(coins, torch.tensor(1 - 1e-15, dtype=torch.float64)) * upto[:, -1]
    block = torch.searchsorted(upto, target[:, None], right=True)[:, 0]
    inside = blocks[rows, block].double().cumsum(-1)
    below = torch.where(block > 0, upto[rows, block - 1], 0.0)
    # The two sums round differently. The target is kept below the block's own total, so the search finds a token with
    # a probability above 0.
    rest = torch.minimum(target - below, inside[:, -1] * (1 - 1e-15))
    return block * BLOCK + torch.searchsorted(inside, rest[:, None], right=True)[:, 0]
