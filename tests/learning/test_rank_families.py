"""Tests that two and four ranks compute, publish and save the same as one rank, also for mixtures of experts, and that
another number of ranks can resume."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.learning import tiny
from tests.learning.ranks import Ranks
from tests.learning.test_families import names_in
from tests.learning.test_ranks import Arrays, Learner, gradients
from tests.learning.test_trainer import FORESTS, weights_of
from treeadv.learning.trainer import Trainer

# In bfloat16 the gradient of each micro-batch is rounded, so its micro-batches must be those of one rank
CASES = [
    ("qwen3_moe", 2, "float32", 2),
    ("qwen3_moe", 0, "bfloat16", 2),
    ("glm4_moe", 0, "float32", 2),
    ("glm4_moe", 2, "bfloat16", 2),
    pytest.param("glm4_moe", 0, "bfloat16", 4, marks=pytest.mark.slow),
    pytest.param("smollm", 0, "float32", 4, marks=pytest.mark.slow),
    pytest.param("smollm", 0, "bfloat16", 4, marks=pytest.mark.slow),
]


def step(rank: int, world: int, folder: str, out: Path, learner: Learner) -> Arrays:
    """Take a step and save a checkpoint. Return the weights that the rank publishes."""
    trainer = Trainer(tiny.config(**learner), folder, rank=rank, world=world)
    trainer.step(FORESTS, 0)
    trainer.save(out)
    return weights_of(trainer)


def resumed_loss(rank: int, world: int, folder: str, checkpoint: Path, learner: Learner) -> Any:
    """Return the loss of the step after the checkpoint."""
    trainer = Trainer(tiny.config(**learner), str(checkpoint), rank=rank, world=world, base_dir=folder)
    trainer.restore(checkpoint)
    return trainer.step(FORESTS, 1).loss


@pytest.mark.parametrize(("family", "lora_rank", "dtype", "world"), CASES)
def test_ranks_equal_one_rank(
    family: str, lora_rank: int, dtype: str, world: int, tmp_path: Path, ranks: Callable[[int], Ranks]
) -> None:
    folder = tiny.folder(tmp_path, family)
    limit = 9 if dtype == "bfloat16" else 4096
    learner = {"lora_rank": lora_rank, "dtype": dtype, "lr": 1e-3, "tokens_per_microbatch": limit}
    found, *_ = ranks(world)(gradients, folder, learner)
    _, expected = gradients(0, 1, folder, learner)
    size = max(float(np.linalg.norm(g)) for g in expected.values())
    assert found[1].keys() == expected.keys()
    assert max(float(np.linalg.norm(found[1][n] - g)) for n, g in expected.items()) / size < 1e-6
    parts = ranks(world)(step, folder, tmp_path / "ranks", learner)
    names = [name for of_rank in parts for name in of_rank]
    assert len(names) == len(set(names))  # no weight is published by two ranks
    assert set(names) == names_in(folder) == names_in(tmp_path / "ranks")
    if dtype == "float32":  # the first step of AdamW has the size of lr for any gradient
        published = {name: weight for of_rank in parts for name, weight in of_rank.items()}
        for name, weight in step(0, 1, folder, tmp_path / "one", learner).items():
            np.testing.assert_allclose(published[name], weight, atol=1e-5)


@pytest.mark.parametrize("world", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_checkpoint_of_two_ranks_resumes_on_another_number(
    world: int, tmp_path: Path, ranks: Callable[[int], Ranks]
) -> None:
    folder, checkpoint = tiny.folder(tmp_path, "qwen3_moe"), tmp_path / "two"
    ranks(2)(step, folder, checkpoint, {})
    expected, again = ranks(2)(resumed_loss, folder, checkpoint, {})
    assert expected == again
    if world == 1:
        found = resumed_loss(0, 1, folder, checkpoint, {})
    else:
        found, *_ = ranks(world)(resumed_loss, folder, checkpoint, {})
    assert found == pytest.approx(expected, rel=1e-6)
