"""Compares the planned memory of a learner with the memory of real ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.learning import tiny
from tests.learning.tiny import folder
from tests.planning import measure
from treeadv.learning.weights import FILE_BYTES
from treeadv.planning import roles
from treeadv.planning.sizes import model_sizes


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return measure.folder(tmp_path_factory.mktemp("model"), "llama")


def planned(model: Path, world: int, dtype: str) -> int:
    sizes = model_sizes(model, tokens=32, compute=getattr(torch, dtype), recompute=False, lora_rank=0)
    return roles.learner(tiny.config(count=world, dtype=dtype), sizes, 32).total


@pytest.mark.parametrize(
    ("world", "dtype"), [(1, "bfloat16"), *(pytest.param(n, "bfloat16", marks=pytest.mark.slow) for n in (2, 4))]
)
def test_peak_of_a_rank_is_within_15_percent_of_the_plan(llama: Path, tmp_path: Path, world: int, dtype: str) -> None:
    ranks = measure.measure("step", llama, tmp_path / "out", world, {"dtype": dtype})
    expected = planned(llama, world, dtype)
    for rank in ranks:
        assert rank["step"] == pytest.approx(expected, rel=0.15)
        assert rank["losses"] == pytest.approx(ranks[0]["losses"], rel=1e-12)
    weights = sum(p.stat().st_size for p in llama.glob("*.safetensors"))
    if world > 1:  # no rank has a whole model in its memory, because the pages of a mapped file are page cache
        state = 4 * weights // world
        assert all(r["save"] < state + min(FILE_BYTES, weights) * 1.2 for r in ranks)


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"updates_per_batch": 2, "passes_per_batch": 2, "kl": 0.1},
        {"accumulate": "whole", "preset": "gspo", "updates_per_batch": 2},
    ],
)
def test_bytes_that_a_rank_receives_are_those_of_the_plan(more: dict[str, Any], tmp_path: Path) -> None:
    """The flat forests fill their micro-batches, so the traffic reaches the upper bound."""
    model = Path(folder(tmp_path, "llama"))
    learner = {"tokens_per_microbatch": 20, "count": 2, "forests_per_step": 8, **more}
    ranks = measure.measure("traffic", model, tmp_path / "out", 2, {"learner": learner, "forests": 8})
    config = tiny.config(**learner)
    sampling = config.sampling.model_copy(update={"leaves": 2, "max_tokens": 8})
    sizes = model_sizes(model, tokens=20, compute=torch.float32, recompute=False, lora_rank=0)
    expected = roles.network(config.model_copy(update={"sampling": sampling}), sizes, 20)
    for rank in ranks:
        assert rank["updates"] == config.learner.updates_per_step
        assert rank["weights"] == pytest.approx(expected["gathered weights, a rank"], rel=0.02)
        assert rank["gradients"] == pytest.approx(expected["reduced gradients, a rank"], rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("family", measure.MODELS)
def test_activations_are_within_15_percent_of_the_plan(family: str, recompute: bool, tmp_path: Path) -> None:
    model = measure.folder(tmp_path, family)
    (found,) = measure.measure("activations", model, tmp_path / "out", 1, {"recompute": recompute})
    sizes = model_sizes(model, tokens=measure.TOKENS, compute=torch.float32, recompute=recompute, lora_rank=0)
    assert found["kept"] == pytest.approx(sizes.activations, rel=0.15)
