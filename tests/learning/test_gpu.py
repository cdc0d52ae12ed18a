"""What only a CUDA device can show. Elsewhere test_benchmarks.py runs the same script, test_attention.py the kernels' uncompiled form."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from benchmarks import gpu
from tests.learning import tiny
from treeadv.errors import BadInput
from treeadv.learning import attention, loading

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: FlexAttention's kernels")]


def test_gradients_through_the_kernels_equal_those_of_flattened_leaves():
    result = gpu._check("cuda")
    assert result["ok"], result


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_a_model_is_accepted_with_the_tree_and_refused_where_the_kernel_sees_more(tmp_path, monkeypatch, compute):
    folder = tiny.folder(tmp_path, "smollm")
    loading.load(folder, "cuda", compute)
    mask = attention.flex_mask
    everything = lambda packed, device: mask(dataclasses.replace(packed, end=np.full(len(packed.end), len(packed.end))), device)  # noqa: E731
    monkeypatch.setattr(attention, "flex_mask", everything)
    with pytest.raises(BadInput, match="does not keep to the tree"):
        loading.load(folder, "cuda", compute)
