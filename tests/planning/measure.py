"""Measures memory in a separate process: `python -m tests.planning.measure step|traffic|activations FOLDER OUT
RANK WORLD OPTIONS_JSON`.

glibc must return freed memory at once (`ENVIRONMENT`), so that the resident size is what the process uses.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3MoeConfig

from tests.learning import tiny
from tests.learning.test_trainer import FORESTS
from tests.strategies import build
from treeadv.learning.loading import chain, load
from treeadv.learning.trainer import Trainer

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_ARENA_MAX": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT),
}
TOKENS = 3072
_SHAPE: dict[str, Any] = {
    "vocab_size": 2048,
    "num_attention_heads": 8,
    "max_position_embeddings": 4096,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
MODELS = {
    "llama": LlamaConfig(
        **_SHAPE, hidden_size=512, intermediate_size=1536, num_hidden_layers=12, num_key_value_heads=8
    ),
    "qwen3_moe": Qwen3MoeConfig(
        **_SHAPE,
        hidden_size=256,
        num_hidden_layers=4,
        num_key_value_heads=4,
        head_dim=64,
        num_experts=8,
        num_experts_per_tok=4,
        moe_intermediate_size=256,
    ),
}


def folder(path: Path, family: str) -> Path:
    """Save a random model of several hundred MB."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(MODELS[family], dtype=torch.float32).save_pretrained(path / family)
    return path / family


def measure(kind: str, model: Path, out: Path, world: int, options: dict[str, Any]) -> list[dict[str, Any]]:
    """Run the ranks and return the output of each rank."""
    out.mkdir()
    line = [sys.executable, "-m", "tests.planning.measure", kind, str(model), str(out)]
    ranks = [
        subprocess.Popen([*line, str(rank), str(world), json.dumps(options)], env=os.environ | ENVIRONMENT)
        for rank in range(world)
    ]
    try:
        assert [r.wait(timeout=240) for r in ranks] == [0] * world
    finally:
        for r in ranks:
            r.kill()
    return [json.loads((out / f"rank-{rank}.json").read_text()) for rank in range(world)]


def resident(field: str) -> int:
    """Return a field of /proc/self/status in bytes: VmRSS (now) or VmHWM (the peak since `reset_peak`)."""
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field))
    return int(line.split()[1]) * 1024


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _step(model: str, out: Path, rank: int, world: int, options: dict[str, Any]) -> dict[str, Any]:
    """Measure the peak memory of loading, of two steps, and of a checkpoint with a publication. The memory of the
    imports does not count."""
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{out}/store", rank=rank, world_size=world)
    config = tiny.config(lr=1e-4, **options)
    small = Trainer(
        config, tiny.folder(out / f"small-{rank}", "llama"), rank=rank, world=world
    )  # makes the one-time allocations
    small.step(FORESTS, 0)
    del small
    base, found = resident("VmRSS"), {}
    reset_peak()
    trainer = Trainer(config, model, rank=rank, world=world)
    found["load"] = resident("VmHWM") - base
    reset_peak()
    losses = [trainer.step(FORESTS, version).loss for version in (0, 1)]
    found["step"] = resident("VmHWM") - base
    reset_peak()
    trainer.save(out / "step-2")
    for _ in trainer.buckets(1 << 20):
        pass
    found["save"] = resident("VmHWM") - base
    if world > 1:
        dist.destroy_process_group()
    return found | {"losses": losses}


def _traffic(model: str, out: Path, rank: int, world: int, options: dict[str, Any]) -> dict[str, Any]:
    """Return the bytes of weights and the bytes of gradients that a rank receives in one step on flat forests of 2 x 8
    tokens."""
    dist.init_process_group("gloo", init_method=f"file://{out}/store", rank=rank, world_size=world)
    trainer = Trainer(tiny.config(**options["learner"]), model, rank=rank, world=world)
    forests = [build([-1, -1], [8, 8], rewards=[0, 1], seed=n, forest_id=f"f{n}") for n in range(options["forests"])]
    received = {"weights": 0, "gradients": 0}
    gather, reduce = dist.all_gather_single, dist.reduce_scatter_single

    def gathered(output: torch.Tensor, share: torch.Tensor, **how: Any) -> Any:
        received["weights"] += output.nbytes - share.nbytes
        return gather(output, share, **how)

    def reduced(*, output: torch.Tensor, input: torch.Tensor, **how: Any) -> Any:
        received["gradients"] += input.nbytes - output.nbytes
        return reduce(output=output, input=input, **how)

    dist.all_gather_single, dist.reduce_scatter_single = gathered, reduced
    report = trainer.step(forests, 0)
    dist.destroy_process_group()
    return received | {"updates": report.updates}


def _activations(model: str, out: Path, rank: int, world: int, options: dict[str, Any]) -> dict[str, Any]:
    """Measure the bytes that a forward pass of `TOKENS` rows keeps in memory."""
    policy = load(model)
    if options["recompute"]:
        policy.recompute_activations()
    ids = torch.arange(TOKENS + 1).numpy() % 2048
    policy(chain(ids[:17], 1)).sum().backward()
    with torch.no_grad():  # kernels allocate workspaces at the first call of a size
        policy(chain(ids, 1))
    ctypes.CDLL(None).malloc_trim(0)  # give freed memory back, so that it is not reused below
    before = resident("VmRSS")
    kept = policy(chain(ids, 1))
    return {"kept": resident("VmRSS") - before, "rows": len(kept)}


if __name__ == "__main__":
    kind, model, out, rank, world, options = sys.argv[1:]
    run = {"step": _step, "traffic": _traffic, "activations": _activations}[kind]
    result = run(model, Path(out), int(rank), int(world), json.loads(options))
    (Path(out) / f"rank-{rank}.json").write_text(json.dumps(result))
