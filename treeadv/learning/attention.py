"""Attention to ancestors only, for Hugging Face models as they are (DESIGN section 7).

Row k may be seen from row q iff `k <= q < end[k]`: k is q or lies on the path to it. On CPU the rows of each tree attend to the
prompt and to themselves by one SDPA call with that mask, so that no score between two trees or two forests is computed; on GPU
the same mask is a FlexAttention block mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from treeadv.learning.packing import Packed

NAME = "treeadv_sdpa"


@dataclass(frozen=True, slots=True)
class TreeBlocks:
    """The SDPA form of a mask: for each block (first row, last row, first prompt row, last prompt row, bool mask or None: causal)."""

    blocks: tuple[tuple[int, int, int, int, torch.Tensor | None], ...]


def sdpa_blocks(packed: Packed) -> TreeBlocks:
    """Masks [rows, prompt + rows] of a micro-batch; a chain without forks needs none beside causality only if it has no prompt apart."""
    end = torch.from_numpy(packed.end)
    out: list[tuple[int, int, int, int, torch.Tensor | None]] = []
    for b in packed.blocks:
        (q0, q1), (p0, p1) = b.query, b.prompt
        q = torch.arange(q0, q1)[:, None]
        k = torch.cat([torch.arange(p0, p1), torch.arange(q0, q1)])[None, :]
        out.append((q0, q1, p0, p1, None if p0 == p1 else (k <= q) & (q < end[k])))
    return TreeBlocks(tuple(out))


def flex_mask(packed: Packed, device: torch.device) -> BlockMask:
    """The block mask [1, 1, N, N] of a micro-batch."""
    end = torch.from_numpy(packed.end).to(device)
    n = len(packed.end)

    def ancestor(batch: torch.Tensor, head: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return (k <= q) & (q < end[k])

    return create_block_mask(ancestor, B=None, H=None, Q_LEN=n, KV_LEN=n, device=device, _compile=device.type == "cuda")


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
