"""`treeadv bench learner`: times the gradient of a forest that computes every token once. It compares the forest with
its flattened leaves and with TRL's GRPO step.  It prints one JSON object per line. Times are seconds of forward and
backward: the minimum over rounds in which the variants take turns. `_s` is wall-clock time; `_cpu_s` is CPU time, on
which other load has less effect. `optimizer_s` is the time of the optimizer, which is the same for all variants.
`bound` is unique tokens over flat tokens, prompts included. `ratio_to_bound` is (tree_s / flat_s) / bound. `scores` is
the number of (row, ancestor) pairs of the trees over that of the flat leaves: a tree saves early tokens, which see few
others, so the bound of attention is `scores`. "flat" is this learner on the same number of separate packed sequences,
without padding. "trl" is `GRPOTrainer._compute_loss` and its backward on leaves of the same length, so that TRL pads
nothing, with the same model. `recomputed` is the number of rows of the tree's micro-batches over its unique tokens,
minus 1: what a pass in depth-first order with cached prefixes would not compute again. It is 0 if a forest fits into
one micro-batch."""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import numpy as np
import torch

from actors.benchmarks import trl_reference
from actors.benchmarks.options import model_parser
from actors.benchmarks.synthetic import flattened, synthetic_forest
from treeadv.command_line import positive
from treeadv.config import Config, parse
from treeadv.data import model_folder as models
from treeadv.forest import Forest
from treeadv.jsonl import JsonObject
from treeadv.learning.packing import pack, pieces
from treeadv.learning.report import Phases
from treeadv.learning.trainer import Trainer


def main(argv: list[str]) -> None:
    p = model_parser("treeadv bench learner", __doc__)
    p.add_argument("--sharing", type=float, nargs="+", default=[0.3, 0.5, 0.7])
    p.add_argument("--leaves", type=positive, nargs="+", default=[8, 16, 32], help="G, of a forest")
    p.add_argument("--step", type=positive, default=32, help="leaves of a step; a step has STEP / LEAVES forests")
    p.add_argument("--length", type=positive, default=64, help="tokens of a leaf")
    p.add_argument("--prompt", type=positive, default=48, help="tokens of the prompt")
    p.add_argument("--microbatch", type=positive, default=1 << 14, help="rows of a micro-batch")
    p.add_argument("--rounds", type=positive, default=3)
    p.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    p.add_argument("--threads", type=positive, default=os.cpu_count() or 1)
    p.add_argument("--no-trl", action="store_true", help="do not measure TRL (the default where TRL is not installed)")
    args = p.parse_args(argv)
    torch.set_num_threads(args.threads)
    folder = str(models.resolve(args.model, args.cache))
    trainer = Trainer(_config(args), folder)
    for leaves in args.leaves:
        for sharing in args.sharing:
            forests = [
                synthetic_forest(leaves, args.length, sharing, args.prompt, trainer.policy.vocabulary, seed)
                for seed in range(args.step // leaves)
            ]
            print(json.dumps(_case(trainer, folder, forests, args)), flush=True)


def _config(args: argparse.Namespace) -> Config:
    # With a baseline a forest of one leaf has the advantage 0, and the learner leaves it out.
    advantage = {"baseline": "none", "scale": "none"}
    learner = {"dtype": args.dtype, "tokens_per_microbatch": args.microbatch, "advantage": advantage}
    return parse({"task": {"families": [{"name": "chain_sum"}]}, "learner": learner}, "benchmark")


def _case(trainer: Trainer, folder: str, forests: list[Forest], args: argparse.Namespace) -> JsonObject:
    flat = [g for f in forests for g in flattened(f)]
    contestants: dict[str, Callable[[], object]] = {
        "tree": lambda: trainer.gradients(forests, Phases("cpu")),
        "flat": lambda: trainer.gradients(flat, Phases("cpu")),
    }
    if find_spec("trl") and not args.no_trl:
        contestants["trl"] = _trl(folder, forests, args.dtype)
    seconds = {name: float("inf") for name in contestants}
    cpu, memory = dict(seconds), dict.fromkeys(contestants, 0.0)
    for turn in range(args.rounds + 1):  # the first round is a warm-up and is not measured
        for name, run in contestants.items():
            gc.collect()
            with _peak_memory() as peak:
                wall, used = time.perf_counter(), time.process_time()
                run()
                wall, used = time.perf_counter() - wall, time.process_time() - used
            if turn:
                seconds[name], cpu[name] = min(seconds[name], wall), min(cpu[name], used)
                memory[name] = max(memory[name], peak[0])
    unique = sum(args.prompt + f.tokens for f in forests)
    bound = unique / sum(args.prompt + g.tokens for g in flat)
    out = {
        "sharing": round(forests[0].sharing, 3),
        "leaves": forests[0].leaves,
        "forests": len(forests),
        "tokens": sum(f.tokens for f in forests),
        "expanded_tokens": sum(f.expanded_tokens for f in forests),
        "prompt": args.prompt,
        "microbatch": args.microbatch,
        "recomputed": sum(p.tokens for p in pieces(forests, args.microbatch)) / unique - 1,
        "bound": bound,
        "scores": _pairs(forests) / _pairs(flat),
        "ratio_to_bound": seconds["tree"] / seconds["flat"] / bound,
        "ratio_to_bound_cpu": cpu["tree"] / cpu["flat"] / bound,
        "optimizer_s": _optimizer_seconds(trainer),
        **{f"{n}_s": s for n, s in seconds.items()},
        **{f"{n}_cpu_s": s for n, s in cpu.items()},
        **{f"{n}_peak_mb": m for n, m in memory.items()},
        "model": args.model,
        "dtype": args.dtype,
        "threads": args.threads,
    }
    if "trl" in seconds:
        out |= {"trl_over_tree": seconds["trl"] / seconds["tree"], "trl_over_tree_cpu": cpu["trl"] / cpu["tree"]}
    return out


def _pairs(forests: list[Forest]) -> int:
    """Return the number of pairs of a row and a row on its path, itself included."""
    packed = pack(forests, pieces(forests, 1 << 40))
    return int((packed.end - np.arange(len(packed.end))).sum())


def _trl(folder: str, forests: list[Forest], dtype: str) -> Callable[[], None]:
    """Return a function that computes TRL's step on all leaves as one padded batch."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    trl_reference.prepare(model, forests[0].temperature)
    prompt = torch.from_numpy(np.stack([f.prompt for f in forests for _ in range(f.leaves)])).long()
    completion = torch.from_numpy(np.stack([f.leaf_tokens(i) for f in forests for i in range(f.leaves)])).long()
    batch = {
        "prompt_ids": prompt,
        "prompt_mask": torch.ones_like(prompt),
        "completion_ids": completion,
        "completion_mask": torch.ones_like(completion),
        "advantages": torch.from_numpy(np.concatenate([f.reward for f in forests]) * 2 - 1),
    }
    autocast = torch.bfloat16 if dtype == "bfloat16" else None

    def run() -> None:
        model.zero_grad()
        trl_reference.loss(model, batch, "bnpo", "token", (0.2, 0.2), autocast=autocast).backward()

    return run


def _optimizer_seconds(trainer: Trainer) -> float:
    trainer.optimizer.step()  # the first step creates the optimizer's state
    began = time.perf_counter()
    torch.nn.utils.clip_grad_norm_(trainer.policy.parameters(), 1.0)
    trainer.optimizer.step()
    return time.perf_counter() - began


@contextmanager
def _peak_memory() -> Iterator[list[float]]:
    """Measure the peak of resident memory during the block, in megabytes above the memory at its start.

    The function first returns freed memory to the system."""
    ctypes.CDLL(None).malloc_trim(0)
    before, peak, done = _resident(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            peak[0] = max(peak[0], _resident() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


def _resident() -> float:
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
