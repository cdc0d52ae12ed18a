"""Two and four ranks compute, publish and save what one does, mixtures of experts too; another number of ranks resumes
it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from tests.learning import tiny
from tests.learning.test_families import names_in
from tests.learning.test_trainer import FORESTS, weights_of
from treeadv.learning import sharding
from treeadv.learning.report import Phases
from treeadv.learning.trainer import Trainer

# In bfloat16 the gradient of each micro-batch is rounded, so its micro-batches must be those of one rank. With an
# adapter, peft adds B A to experts in the dtype of their weights: float32 on one rank, gathered bfloat16 on several.
CASES = [
    ("qwen3_moe", 2, "float32", 2, 1e-6),
    pytest.param("qwen3_moe", 0, "bfloat16", 2, 1e-6, marks=pytest.mark.slow),
    pytest.param("glm4_moe", 0, "float32", 2, 1e-6, marks=pytest.mark.slow),
    pytest.param("glm4_moe", 0, "bfloat16", 4, 1e-6, marks=pytest.mark.slow),
    pytest.param("glm4_moe", 2, "bfloat16", 2, 2e-3, marks=pytest.mark.slow),
    pytest.param("smollm", 0, "float32", 4, 1e-6, marks=pytest.mark.slow),
    pytest.param("smollm", 0, "bfloat16", 4, 1e-6, marks=pytest.mark.slow),
]


def main(folder: str, out: Path, rank: int, world: int, learner: dict, resume: str) -> None:
    """Run one rank. It writes the gradients of the first step and the weights after it, or the loss of a resumed
    step."""
    dist.init_process_group("gloo", init_method=f"file://{out}/store", rank=rank, world_size=world)
    if resume:
        trainer = Trainer(tiny.config(**learner), resume, rank, world, base_dir=folder)
        trainer.restore(resume)
        (out / f"{rank}.json").write_text(json.dumps(trainer.step(FORESTS, 1).loss))
        return
    trainer = Trainer(tiny.config(**learner), folder, rank, world)
    trainer.gradients(FORESTS, Phases("cpu"))
    trained = [(n, p.grad) for n, p in trainer.policy.model.named_parameters() if p.grad is not None]
    gradients = {n: sharding.full(g) for n, g in trained}
    trainer.step(FORESTS, 0)
    trainer.save(out / "step-1")
    torch.save({"gradients": gradients, "published": weights_of(trainer)}, out / f"{rank}.pt")
    dist.destroy_process_group()


def run_ranks(folder: str, out: Path, world: int, learner: dict, resume: str = "") -> None:
    out.mkdir()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    line = [sys.executable, "-m", "tests.learning.test_rank_families", folder, str(out)]
    ranks = [
        subprocess.Popen([*line, str(rank), str(world), json.dumps(learner), resume], env=environment)
        for rank in range(world)
    ]
    try:
        assert [r.wait(timeout=240) for r in ranks] == [0] * world
    finally:
        for r in ranks:
            r.kill()


@pytest.mark.parametrize(("family", "lora_rank", "dtype", "world", "error"), CASES)
def test_ranks_equal_one_rank(
    family: str, lora_rank: int, dtype: str, world: int, error: float, tmp_path: Path
) -> None:
    folder = tiny.folder(tmp_path, family)
    limit = 9 if dtype == "bfloat16" else 4096
    learner = {"lora_rank": lora_rank, "dtype": dtype, "lr": 1e-3, "tokens_per_microbatch": limit}
    run_ranks(folder, tmp_path / "ranks", world, learner)
    found = [torch.load(tmp_path / "ranks" / f"{rank}.pt", weights_only=False) for rank in range(world)]
    one = Trainer(tiny.config(**learner), folder)
    one.gradients(FORESTS, Phases("cpu"))
    expected = {n: p.grad for n, p in one.policy.model.named_parameters() if p.grad is not None}
    size = max(float(g.norm()) for g in expected.values())
    assert found[0]["gradients"].keys() == expected.keys()
    assert max(float((found[0]["gradients"][n] - g).norm()) for n, g in expected.items()) / size < error
    one.step(FORESTS, 0)
    names = [name for rank in found for name in rank["published"]]
    assert len(names) == len(set(names))  # each rank publishes a share of its own
    assert set(names) == names_in(folder) == names_in(tmp_path / "ranks" / "step-1")
    if dtype == "float32":  # the first step of AdamW has the size of lr, whatever the gradient
        published = {name: weight for rank in found for name, weight in rank["published"].items()}
        for name, weight in weights_of(one).items():
            np.testing.assert_allclose(published[name], weight, atol=1e-5)


@pytest.mark.parametrize("world", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_checkpoint_of_two_ranks_resumes_on_another_number(world: int, tmp_path: Path) -> None:
    folder = tiny.folder(tmp_path, "qwen3_moe")
    run_ranks(folder, tmp_path / "two", 2, {})
    checkpoint = str(tmp_path / "two" / "step-1")
    run_ranks(folder, tmp_path / "again", 2, {}, checkpoint)
    expected = json.loads((tmp_path / "again" / "0.json").read_text())
    run_ranks(folder, tmp_path / "other", world, {}, checkpoint)
    assert json.loads((tmp_path / "other" / "0.json").read_text()) == pytest.approx(expected, rel=1e-6)


if __name__ == "__main__":
    folder, out, rank, world, learner, resume = sys.argv[1:]
    main(folder, Path(out), int(rank), int(world), json.loads(learner), resume)
