"""Tests that need a CUDA device. Without such a device, test_benchmarks.py runs the same script, and test_attention.py
tests the uncompiled kernels."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from benchmarks import gpu
from tests.learning import tiny
from treeadv.errors import BadInput
from treeadv.learning import attention, loading

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: FlexAttention's kernels"),
]


def test_gradients_through_kernels_equal_flattened_leaves():
    result = gpu._check("cuda")
    assert result["ok"], result


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_kernel_that_attends_beyond_the_tree_is_refused(tmp_path, monkeypatch, compute):
    folder = tiny.folder(tmp_path, "smollm")
    loading.load(folder, "cuda", compute)
    mask = attention.flex_mask

    def everything(packed, device):
        return mask(dataclasses.replace(packed, end=np.full(len(packed.end), len(packed.end))), device)

    monkeypatch.setattr(attention, "flex_mask", everything)
    with pytest.raises(BadInput, match="ignores the tree's mask"):
        loading.load(folder, "cuda", compute)
