"""Tests both forms of the attention mask: SDPA by trees on CPU, FlexAttention blocks on GPU."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from tests.learning import tiny
from tests.strategies import build, forests
from treeadv.forest import Forest
from treeadv.learning import attention, blocks, loading, packing


def seen(batch: list[Forest], packed: packing.Packed) -> np.ndarray:
    """Return the mask [N, N] of uncut forests by walking the tree: true where a row is the same token or one on its
    path."""
    owner = []
    for p in packed.pieces:
        f = batch[p.forest]
        owner += [(p.forest, -1)] * len(f.prompt)
        owner += [(p.forest, s) for s in range(f.segments) for _ in range(f.lengths[s] - (f.arity[s] == 0))]
    paths = [[set(f.path(s)) for s in range(f.segments)] for f in batch]
    out = np.zeros((len(owner), len(owner)), bool)
    for q, (forest, s) in enumerate(owner):
        for k, (other, t) in enumerate(owner[: q + 1]):
            out[q, k] = forest == other and (t == -1 or (s != -1 and t in paths[forest][s]))
    return out


@pytest.mark.parametrize(("chunk", "cost"), [(512, 1 << 16), (3, 0), (1, 4), (4, 40)])
@given(batch=st.lists(forests(max_segments=10), min_size=1, max_size=3))
def test_row_attends_only_to_itself_and_its_ancestors(chunk, cost, batch):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "CHUNK", chunk)
        patch.setattr(blocks, "BLOCK_SCORES", cost)
        packed = packing.pack(batch, packing.pieces(batch, 10**6))
    want = seen(batch, packed)
    n = len(packed.token)
    q, k = np.arange(n)[:, None], np.arange(n)[None, :]
    np.testing.assert_array_equal((k <= q) & (q < packed.end[None, :]), want)
    by_tree = np.zeros((n, n), bool)
    tree = attention.sdpa_blocks(packed)
    parts = np.split(np.arange(n), np.cumsum(tree.sizes)[:-1])
    for rows, context, mask in zip(parts, tree.context, tree.mask, strict=True):
        keys = np.concatenate([*(parts[i] for i in context), rows])
        by_tree[np.ix_(rows, keys)] = mask.numpy()
    np.testing.assert_array_equal(by_tree, want)


@pytest.mark.parametrize(("heads", "kv"), [(6, 2), (4, 4), (4, 1)])
def test_plain_products_in_bfloat16_equal_the_kernel(heads, kv):
    torch.manual_seed(0)
    q, k, v = (
        torch.randn(1, h, n, 16, dtype=torch.bfloat16, requires_grad=True) for h, n in ((heads, 20), (kv, 33), (kv, 33))
    )
    mask = torch.rand(20, 33) < 0.5
    mask[:, 0] = True
    weight = torch.randn(1, heads, 20, 16)
    results = []
    for limit in (0, 1 << 19):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(attention, "PLAIN_SCORES", limit)
            out = attention._attend(q, k, v, mask, None, grouped=heads != kv)
        results.append((out, *torch.autograd.grad((out.float() * weight).sum(), (q, k, v))))
    for a, b in zip(*results, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=0.02, atol=0.02)


@given(st.lists(forests(max_length=90, max_prompt=200, max_segments=12), min_size=1, max_size=3))
def test_flex_blocks_equal_those_that_torch_derives(batch):
    packed = packing.pack(batch, packing.pieces(batch, 10**6))
    ours = attention.flex_mask(packed, torch.device("cpu"))
    n = len(packed.token)
    theirs = create_block_mask(ours.mask_mod, None, None, n, n, device="cpu", BLOCK_SIZE=attention.BLOCK)
    for name in ("kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    for count, index in (("kv_num_blocks", "kv_indices"), ("full_kv_num_blocks", "full_kv_indices")):
        for a, b, m in zip(
            getattr(ours, index)[0, 0], getattr(theirs, index)[0, 0], getattr(ours, count)[0, 0], strict=True
        ):
            assert a[:m].tolist() == b[:m].tolist()
    assert ours.shape == theirs.shape


@pytest.fixture
def flex_on_cpu(monkeypatch):
    """Run FlexAttention uncompiled, which works on CPU without gradients. `python -m benchmarks.gpu` tests gradients on
    a GPU."""

    def uncompiled(query, key, value, training=False, **how):
        how.pop("return_lse", None)
        return flex_attention(query, key, value, **how)

    monkeypatch.setattr("transformers.integrations.flex_attention.compile_friendly_flex_attention", uncompiled)


@pytest.mark.parametrize("family", ["smollm", "qwen3"])
def test_log_probs_through_flex_attention_equal_sdpa(family, tmp_path, monkeypatch, flex_on_cpu):
    sdpa = loading.load(tiny.folder(tmp_path, family))
    flex = loading.load(tiny.folder(tmp_path, family))
    flex.flex = True
    batch = [build([-1, 0, 0, 2, 2, -1], [20, 30, 10, 25, 40, 25], prompt=30), build([-1, -1], [5, 7])]
    packed = packing.pack(batch, packing.pieces(batch, 1000))
    with torch.no_grad():
        want = sdpa(packed)
        monkeypatch.delattr(attention, "sdpa_blocks")  # FlexAttention must not need dense masks
        torch.testing.assert_close(flex(packed), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_check_on_a_gpu_spans_every_kind_of_block(tmp_path, monkeypatch, flex_on_cpu, compute):
    flex = loading.load(tiny.folder(tmp_path, "smollm"))
    flex.flex, masks = True, []

    def kept(packed: packing.Packed, device: torch.device):
        masks.append(attention_mask(packed, device))
        return masks[-1]

    attention_mask = attention.flex_mask
    monkeypatch.setattr(attention, "flex_mask", kept)
    assert loading.tree_error(flex, compute, *loading.GPU_CHECK) < 1e-3
    whole, partial = int(masks[0].full_kv_num_blocks.sum()), int(masks[0].kv_num_blocks.sum())
    blocks = masks[0].kv_num_blocks.shape[-1]
    assert whole > 0 and partial > blocks and whole + partial < blocks * (blocks + 1) / 2
    monkeypatch.setattr(attention, "flex_mask", lambda packed, device: attention_mask(causal(packed), device))
    assert loading.tree_error(flex, compute, *loading.GPU_CHECK) > 1e-3


def causal(packed: packing.Packed) -> packing.Packed:
    """Return the mask in which every row attends to all earlier rows."""
    return dataclasses.replace(packed, end=np.full(len(packed.end), len(packed.end)))
