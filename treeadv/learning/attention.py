"""Attention to ancestors only, for Hugging Face models as they are (DESIGN section 7).

Row k may be seen from row q iff `k <= q < end[k]`: k is q or lies on the path to it. On CPU the rows of each tree attend to the
prompt and to themselves by one SDPA call with that mask, so that no score between two trees or two forests is computed; on GPU
the same mask is a FlexAttention block mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from treeadv.learning.packing import Packed

NAME = "treeadv_sdpa"
BLOCK = 128  # rows of a FlexAttention block


@dataclass(frozen=True, slots=True)
class TreeBlocks:
    """The SDPA form of a mask: for each block (first row, last row, first prompt row, last prompt row, bool mask or None: causal)."""

    blocks: tuple[tuple[int, int, int, int, torch.Tensor | None], ...]


def sdpa_blocks(packed: Packed) -> TreeBlocks:
    """The masks [rows, prompt + rows] of a micro-batch's blocks."""
    end = torch.from_numpy(packed.end)
    out: list[tuple[int, int, int, int, torch.Tensor | None]] = []
    for b in packed.blocks:
        (q0, q1), (p0, p1) = b.query, b.prompt
        q = torch.arange(q0, q1)[:, None]
        k = torch.cat([torch.arange(p0, p1), torch.arange(q0, q1)])[None, :]
        out.append((q0, q1, p0, p1, None if p0 == p1 else (k <= q) & (q < end[k])))
    return TreeBlocks(tuple(out))


def flex_mask(packed: Packed, device: torch.device) -> BlockMask:
    """The block mask [1, 1, N, N] of a micro-batch, from the rows' subtree ends alone: the [N, N] mask never exists.

    A block of keys wholly before the block of queries has a visible pair iff one of its keys' subtrees reaches the first query,
    and is visible throughout iff all of them reach past the last.
    """
    n = len(packed.end)
    first = np.arange(0, n, BLOCK)
    longest, shortest = np.maximum.reduceat(packed.end, first), np.minimum.reduceat(packed.end, first)
    earlier = first[None, :] < first[:, None]  # [query block, key block]
    some = (earlier & (longest[None, :] > first[:, None])) | np.eye(len(first), dtype=bool)
    whole = earlier & (shortest[None, :] >= first[:, None] + BLOCK)
    end = torch.from_numpy(packed.end).to(device)

    def ancestor(batch: torch.Tensor, head: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return (k <= q) & (q < end[k])

    return BlockMask.from_kv_blocks(
        *_ordered(some & ~whole, device), *_ordered(whole, device), BLOCK_SIZE=BLOCK, mask_mod=ancestor, seq_lengths=(n, n)
    )


def _ordered(dense: np.ndarray, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(count [1, 1, Q], indices [1, 1, Q, K]): the true columns of each row first."""
    t = torch.from_numpy(dense).to(device, torch.int32)[None, None]
    return t.sum(-1, dtype=torch.int32), t.argsort(dim=-1, descending=True, stable=True).to(torch.int32)


def _tree_attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, tree: TreeBlocks | None = None, **_):
    """query [1, heads, N, d], key and value [1, kv heads, N, d] -> [1, N, heads, d]. Without `tree`: causal attention."""
    grouped = key.shape[1] != query.shape[1]
    if tree is None:
        out = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=grouped)
        return out.transpose(1, 2).contiguous(), None
    parts = []
    for q0, q1, p0, p1, mask in tree.blocks:
        k, v = (torch.cat([x[:, :, p0:p1], x[:, :, q0:q1]], 2) if mask is not None else x[:, :, q0:q1] for x in (key, value))
        parts.append(
            scaled_dot_product_attention(
                query[:, :, q0:q1], k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=grouped
            )
        )
    return torch.cat(parts, 2).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, _tree_attention)
