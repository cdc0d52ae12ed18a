"""Advantages of TreeAdv for flat rollouts, in the data layouts of other trainers.

A row is one rollout, as in `Forest.from_dicts`, with `prompt_ids`, `completion_ids`, `logprobs` and `reward`. The
rows of one prompt form one forest, whose tree follows from equal prefixes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from treeadv.forest import Forest
from treeadv.forest.construction import group_by_prompt
from treeadv.forest.prefixes import prefix_order
from treeadv.jsonl import JsonMapping
from treeadv.presets import AdvantageSpec, build_advantage

if TYPE_CHECKING:
    from torch import Tensor

Rows = Sequence[JsonMapping]


def token_advantages(forest: Forest, preset: str | AdvantageSpec = "treeadv") -> npt.NDArray[np.float64]:
    """Return [L, R] the advantage of each token of each flat rollout of a graded forest. R is the length of the longest
    rollout.

    A token that K rollouts share is in K rows. The loss of the preset counts this token c times. So each copy has the
    advantage A c / K (docs/method.md), and the sum over the tokens in a flat trainer gives the gradient of the tree.

    >>> tree = Forest.assemble(prompt=[1], parent=[-1, 0, 0], lengths=[1, 1, 2], token=[5] * 4, logprob=[-1.0] * 4)
    >>> token_advantages(tree.with_rewards([1.0, 0.0], [Verdict.VERIFIED, Verdict.WRONG])).round(2).tolist()
    [[0.0, 0.71, 0.0], [0.0, -0.71, -0.71]]
    """
    from treeadv.learning.advantage import advantages

    spec = build_advantage(preset) if isinstance(preset, str) else preset
    advantage, weight = advantages(forest, spec)
    flat = forest.to_flat()
    return flat.spread_segments(advantage * weight / flat.copies)


def rollout_advantages(rows: Rows, preset: str | AdvantageSpec = "treeadv") -> npt.NDArray[np.float64]:
    """Return [B, T] the advantage of each token of each row, in the order of the rows. T is the length of the longest
    completion, and the rest of a row is 0.

    Raises `ValueError` for a row without one of its keys. The reward is one of these keys.

    >>> drawn = {"prompt_ids": [1], "logprobs": [-1.0, -0.7]}
    >>> rows = [drawn | {"completion_ids": [5, k], "reward": k % 2} for k in (6, 7)]
    >>> rollout_advantages(rows).round(2).tolist()
    [[0.0, -0.71], [0.0, 0.71]]
    """
    groups = group_by_prompt(rows, ("prompt_ids", "completion_ids", "logprobs", "reward"))
    out = np.zeros((len(rows), max(len(row["completion_ids"]) for row in rows)))
    for forest, (_, members) in zip(Forest.from_dicts(rows), groups, strict=True):
        order = prefix_order([list(rows[i]["completion_ids"]) for i in members])
        values = token_advantages(forest, preset)
        out[[members[i] for i in order], : values.shape[1]] = values
    return out


def trl_batch(rows: Rows, preset: str | AdvantageSpec = "treeadv", pad: int = 0) -> dict[str, Tensor]:
    """Return the inputs of the loss of TRL's `GRPOTrainer`.

    `prompt_ids` and `prompt_mask` are [B, P], padded on the left. `completion_ids`, `completion_mask`,
    `old_per_token_logps` and `advantages` are [B, T], padded on the right.

    >>> row = {"prompt_ids": [1], "completion_ids": [5], "logprobs": [-1.0]}
    >>> batch = trl_batch([row | {"reward": 1.0}, row | {"reward": 0.0}])
    >>> batch["advantages"].shape
    torch.Size([2, 1])
    """
    import torch

    prompts = _padded([row["prompt_ids"] for row in rows], pad, left=True)
    answers = _padded([row["completion_ids"] for row in rows], pad)
    logprobs = _padded([row["logprobs"] for row in rows], 0.0)
    return {
        "prompt_ids": torch.tensor(prompts[0], dtype=torch.long),
        "prompt_mask": torch.tensor(prompts[1], dtype=torch.long),
        "completion_ids": torch.tensor(answers[0], dtype=torch.long),
        "completion_mask": torch.tensor(answers[1], dtype=torch.long),
        "old_per_token_logps": torch.tensor(logprobs[0], dtype=torch.float32),
        "advantages": torch.tensor(rollout_advantages(rows, preset), dtype=torch.float32),
    }


def verl_batch(rows: Rows, preset: str | AdvantageSpec = "treeadv", pad: int = 0) -> dict[str, Tensor]:
    """Return the tensors that verl's `DataProto` has when verl updates the actor.

    They are `prompts` [B, P], `responses`, `response_mask`, `old_log_probs`, `advantages` and `returns` [B, T], and
    `input_ids`, `attention_mask` and `position_ids` [B, P + T]. `DataProto.from_dict(tensors=verl_batch(rows))` makes a
    batch of them.

    >>> row = {"prompt_ids": [1, 2], "completion_ids": [5], "logprobs": [-1.0]}
    >>> batch = verl_batch([row | {"reward": 1.0}, row | {"reward": 0.0}])
    >>> batch["input_ids"].tolist(), batch["position_ids"].tolist()
    ([[1, 2, 5], [1, 2, 5]], [[0, 1, 2], [0, 1, 2]])
    """
    import torch

    batch = trl_batch(rows, preset, pad)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    return {
        "prompts": batch["prompt_ids"],
        "responses": batch["completion_ids"],
        "response_mask": batch["completion_mask"],
        "input_ids": torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
        "attention_mask": mask,
        "position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0),
        "old_log_probs": batch["old_per_token_logps"],
        "advantages": batch["advantages"],
        "returns": batch["advantages"],
    }


def _padded(
    rows: Sequence[Sequence[float]], pad: float, left: bool = False
) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.bool_]]:
    """Return (values, mask), both [B, length of the longest row]."""
    width = max(map(len, rows))
    values, mask = np.full((len(rows), width), pad), np.zeros((len(rows), width), bool)
    for i, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        values[i, place], mask[i, place] = row, True
    return values, mask
