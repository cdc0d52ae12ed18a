"""Computes attention to ancestors only, for unchanged Hugging Face models (docs/method.md).

Row q attends to row k iff `k <= q < end[k]`, which means that k is q or is on the path to q. On a CPU each block of
rows (treeadv/learning/blocks.py) attends to itself and to the blocks of its ancestors in one SDPA call with this mask.
No score between two trees or two forests is computed, and few between two long branches. On a GPU the same mask is a
FlexAttention block mask."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.flex_attention import flex_attention_forward

from treeadv.data.model_check import check_terms
from treeadv.learning.packing import Packed

NAME = "treeadv"
BLOCK = 128  # rows of a FlexAttention block
# Plain matrix products compute at most this many scores of a head. The scores are kept for the backward pass.
PLAIN_SCORES = 1 << 17


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeBlocks:
    """The mask for SDPA.

    The rows are split into parts of `sizes` rows. Part i attends to the parts with the numbers `context[i]` and to
    itself. `mask[i]` [rows, keys] says which rows attend to which keys."""

    sizes: tuple[int, ...]
    context: tuple[tuple[int, ...], ...]
    mask: tuple[torch.Tensor, ...]


def sdpa_blocks(packed: Packed) -> TreeBlocks:
    """Return the parts of a micro-batch, one for each block."""
    end = torch.from_numpy(packed.end)
    number = {b.query: i for i, b in enumerate(packed.blocks)}
    masks = []
    for b in packed.blocks:
        q = torch.arange(*b.query)[:, None]
        k = torch.cat([torch.arange(*rows) for rows in (*b.context, b.query)])[None, :]
        masks.append((k <= q) & (q < end[k]))
    return TreeBlocks(
        sizes=tuple(b.query[1] - b.query[0] for b in packed.blocks),
        context=tuple(tuple(number[c] for c in b.context) for b in packed.blocks),
        mask=tuple(masks),
    )


def flex_mask(packed: Packed, device: torch.device) -> BlockMask:
    """Return the block mask [1, 1, N, N] of a micro-batch.

    The block mask follows from the subtree ends of the rows, without an [N, N] mask. Take a block of keys before a
    block of queries. A pair of the two blocks is visible iff the subtree of one key reaches the first query. Every pair
    is visible iff the subtrees of all keys reach past the last query."""
    n = len(packed.end)
    first = np.arange(0, n, BLOCK)
    longest, shortest = np.maximum.reduceat(packed.end, first), np.minimum.reduceat(packed.end, first)
    earlier = first[None, :] < first[:, None]  # [query block, key block]: whether the keys are before the queries
    some = (earlier & (longest[None, :] > first[:, None])) | np.eye(len(first), dtype=bool)
    whole = earlier & (shortest[None, :] >= first[:, None] + BLOCK)
    end = torch.from_numpy(packed.end).to(device)

    def ancestor(batch: torch.Tensor, head: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return (k <= q) & (q < end[k])

    return BlockMask.from_kv_blocks(
        *_ordered(some & ~whole, device),
        *_ordered(whole, device),
        BLOCK_SIZE=BLOCK,
        mask_mod=ancestor,
        seq_lengths=(n, n),
    )


def _ordered(dense: np.ndarray, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (count [1, 1, Q], indices [1, 1, Q, K]) of the true columns of each row. The true columns are first."""
    t = torch.from_numpy(dense).to(device, torch.int32)[None, None]
    return t.sum(-1, dtype=torch.int32), t.argsort(dim=-1, descending=True, stable=True).to(torch.int32)


def _tree_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: BlockMask | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    tree: TreeBlocks | None = None,
    **how: object,
) -> tuple[torch.Tensor, None]:
    """Return the attention [1, N, heads, d] of query [1, heads, N, d] to key and value [1, kv heads, N, d].

    The result has the dtype of `value`, because autocast leaves the rotated query and key in float32. Without a block
    mask and without a tree the attention is causal, as a flat pass needs. Dropout is not applied, because it would add
    noise to the ratio to the behaviour policy."""
    check_terms(how)
    query, key, grouped = query.to(value.dtype), key.to(value.dtype), key.shape[1] != query.shape[1]
    if isinstance(attention_mask, BlockMask):
        return flex_attention_forward(module, query, key, value, attention_mask, scaling=scaling)[0], None
    if tree is None:
        out = scaled_dot_product_attention(
            query, key, value, is_causal=query.shape[2] > 1, scale=scaling, enable_gqa=grouped
        )
        return out.transpose(1, 2).contiguous(), None
    # `split` replaces slices, because the gradient of a slice is as large as the whole tensor
    queries, keys, values = (x.split(tree.sizes, 2) for x in (query, key, value))
    parts = []
    for q, k, v, context, mask in zip(queries, keys, values, tree.context, tree.mask, strict=True):
        if context:
            k, v = (torch.cat([*(x[i] for i in context), own], 2) for x, own in ((keys, k), (values, v)))
        parts.append(_attend(q, k, v, mask, scaling, grouped))
    return torch.cat(parts, 2).transpose(1, 2).contiguous(), None


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, scaling: float | None, grouped: bool
) -> torch.Tensor:
    """Return the attention [1, heads, n, d] of one part: q [1, heads, n, d], k and v [1, kv heads, m, d], mask [n, m].

    In bfloat16 with at most `PLAIN_SCORES` scores, plain matrix products compute the part. SDPA's kernel takes twice
    as long for a few scores, and less time for many (`python -m benchmarks.attention`). In float32 the kernel is as
    fast."""
    if q.dtype != torch.bfloat16 or mask.numel() > PLAIN_SCORES:
        return scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling, enable_gqa=grouped)
    kv, n, d = k.shape[1], q.shape[2], q.shape[3]
    rows = q.reshape(kv, -1, d)  # stacks the heads that share keys
    scores = (rows @ k[0].transpose(1, 2)).float() * (d**-0.5 if scaling is None else scaling)
    share = scores.view(kv, -1, n, k.shape[2]).masked_fill(~mask, -torch.inf).softmax(-1).to(v.dtype)
    return (share.view(kv, -1, k.shape[2]) @ v[0]).view(q.shape)


AttentionInterface.register(NAME, _tree_attention)
