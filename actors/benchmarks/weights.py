"""`treeadv bench weights`: the cost of a policy version, and the memory of learner and generator.

A learner and a generator, as in a run, train one batch and publish each version through the object store. With several
sizes of the model it shows how time and memory grow with the weights. It prints one JSON object per line:

  machine      what this machine copies in a second (GB/s) with `memory` (numpy), `disk` (write and read a file) and
               `gloo` (broadcast between two processes), each for the bytes of the published weights
  publication  `learner_pause_s` from the call of the learners to the last object, `generator_pause_s` in which the
               engine draws nothing, `seconds` for both, GB/s, and `of_machine`, the share of the memory's speed. A
               publication copies twice, into the object store and into the engine, so `of_machine` is at most 0.5
  memory       peak, private and shared memory of a role in MB, and the peak over the bytes of the float32 weights
  transport    with --engine sglang: the same publication to a server with each value of generator.sglang.weights, while
               16 branches are drawn; `of_machine` compares it with the speed of that medium
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import ray
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from ray.actor import ActorProxy
from transformers import AutoConfig, AutoModelForCausalLM

from actors.benchmarks.lines import print_figures
from actors.benchmarks.options import model_parser
from actors.benchmarks.short_model import shortened
from actors.benchmarks.synthetic import synthetic_forest
from actors.driver.handles import Handle, actor_class, close
from actors.driver.learner_group import LearnerGroup, Publication
from actors.driver.supervisor import connect
from actors.driver.targets import Targets
from actors.generator import Generator
from actors.learner import Learner
from treeadv import wire
from treeadv.command_line import positive
from treeadv.config import Config, parse
from treeadv.data import model_folder as models
from treeadv.engines.base import Params
from treeadv.engines.sglang.engine import SGLangEngine
from treeadv.jsonl import JsonObject
from treeadv.storage.run_folder import RunFolder

MEDIA = {"disk": "disk", "tensor": "memory", "distributed": "gloo"}  # the medium of each generator.sglang.weights
BRANCHES = 16  # branches that are drawn during an update of a server


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """The bytes of a publication, the pauses of learner and generator, and the seconds of the whole."""

    size: int
    learner_s: float
    generator_s: float
    seconds: float


class _Measured:
    @ray.method
    def memory(self) -> dict[str, float]:
        """Return the memory of this process in MB: its peak, and what it holds now."""
        fields = [line.split() for line in Path("/proc/self/status").read_text().splitlines()]
        kib = {words[0].rstrip(":"): float(words[1]) for words in fields if words[-1:] == ["kB"]}
        return {
            name: kib[key] * 1024 / 1e6
            for name, key in (("peak_mb", "VmHWM"), ("private_mb", "RssAnon"), ("shared_mb", "RssShmem"))
        }


class MeasuredLearner(_Measured, Learner):
    """A learner that reports its memory."""


class MeasuredGenerator(_Measured, Generator):
    """A generator that reports its memory."""


def main(argv: list[str]) -> None:
    p = model_parser("treeadv bench weights", __doc__, "a Hugging Face folder; its weights are drawn at random")
    p.add_argument("--engine", choices=("embedded", "sglang"), default="embedded")
    p.add_argument("--layers", type=positive, nargs="+", default=[6, 15, 30], help="layers of the model, one size each")
    p.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the published weights")
    p.add_argument("--updates", type=positive, default=3, help="versions that are measured; the fastest counts")
    p.add_argument("--stubs", default="deploy/sglang_cpu/stubs")
    args = p.parse_args(argv)
    source = models.resolve(args.model, args.cache)
    for layers in args.layers:
        with tempfile.TemporaryDirectory() as root:
            config = _config(Path(root), shortened(source, Path(root) / "model", num_hidden_layers=layers), args)
            try:
                asyncio.run(_measure_roles(connect(config), args))
            finally:
                ray.shutdown()  # the next size starts its own processes
            if args.engine == "sglang":
                asyncio.run(_measure_transports(config, args))


def _config(root: Path, model: Path, args: argparse.Namespace) -> Config:
    tree: JsonObject = {
        "run": {"root": str(root), "name": "run"},
        "model": {"path": str(model)},
        "task": {"families": [{"name": "chain_sum"}]},
        "generator": {"threads": 1, "dtype": args.dtype, "rows": 8},
        "learner": {"threads": 1, "dtype": "float32"},
        "metrics": {"port": 0},
    }
    return parse(tree, "bench weights")


async def _measure_roles(config: Config, args: argparse.Namespace) -> None:
    folder, config, lock = RunFolder.create(config, "run")
    learners = LearnerGroup(config, folder, Targets(folder), MeasuredLearner)
    generator = actor_class(MeasuredGenerator, config.generator, max_concurrency=8).remote(config, 0, 0)
    try:
        await asyncio.gather(learners.start(0), generator.start.remote())
        await _train(learners, config)
        updates = [await _publish(learners, generator, version) for version in range(1, args.updates + 1)]
        best = min(updates, key=lambda update: update.seconds)
        size = best.size
        machine = {name: size / 1e9 / took for name, took in _machine(size).items()}
        print_figures(bench="weights", way="machine", mb=size / 1e6, **machine)
        speed = size / 1e9 / best.seconds
        print_figures(
            bench="weights", way="publication", dtype=args.dtype, mb=size / 1e6, learner_pause_s=best.learner_s,
            generator_pause_s=best.generator_s, seconds=best.seconds, gigabytes_per_second=speed,
            of_machine=speed / machine["memory"],
        )  # fmt: skip
        weights = size / 1e6 * (1 if args.dtype == "float32" else 2)
        members: dict[str, Handle] = {"learner": learners.members[0], "generator": generator}
        for role, member in members.items():
            memory = await member.memory.remote()
            print_figures(
                bench="weights", way="memory", role=role, weights_mb=weights, **memory,
                peak_over_weights=memory["peak_mb"] / weights,
            )  # fmt: skip
    finally:
        await learners.end()
        await close([generator])
        lock.release()


async def _train(learners: LearnerGroup, config: Config) -> None:
    """Take one step, because a learner has its moments and its largest memory only after a step."""
    vocabulary = AutoConfig.from_pretrained(config.model.path).vocab_size
    forests = [synthetic_forest(8, 40, 0.2, 40, vocabulary, seed) for seed in range(6)]
    batch, rows = ray.put(wire.to_batch(forests)), [(0, row) for row in range(len(forests))]
    await asyncio.gather(*(member.step.remote([batch], rows, 0) for member in learners.members))


async def _publish(learners: LearnerGroup, generator: ActorProxy[MeasuredGenerator], version: int) -> Update:
    began = time.perf_counter()
    publication: Publication = await learners.publish(version)
    published = time.perf_counter()
    paused = await generator.update_weights.remote(version, list(publication.buckets))
    seconds = time.perf_counter() - began
    return Update(size=publication.size, learner_s=published - began, generator_s=paused, seconds=seconds)


def _machine(size: int) -> dict[str, float]:
    """Return the seconds that this machine needs to move `size` bytes by memory, disk and gloo, the best of three."""
    source = np.ones(size, np.uint8)
    target = np.zeros_like(source)

    def by_disk() -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "weights"
            source.tofile(file)
            np.fromfile(file, np.uint8)

    return {
        "memory": _fastest(lambda: np.copyto(target, source)),
        "disk": _fastest(by_disk),
        "gloo": _gloo_seconds(size),
    }


def _fastest(work: Callable[[], object]) -> float:
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def _gloo_seconds(size: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_broadcast, (size, folder), nprocs=2)
        return float((Path(folder) / "seconds").read_text())


def _broadcast(rank: int, size: int, folder: str) -> None:
    """Send `size` bytes from rank 0 to rank 1 three times. Rank 1 writes the fastest time."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    data = torch.ones(size, dtype=torch.uint8)

    def send() -> None:
        dist.broadcast(data, 0)
        dist.barrier()

    seconds = _fastest(send)
    if rank:
        (Path(folder) / "seconds").write_text(str(seconds))
    dist.destroy_process_group()


async def _measure_transports(config: Config, args: argparse.Namespace) -> None:
    url = ""
    first: SGLangEngine | None = None
    try:
        for transport, medium in MEDIA.items():
            sglang = {"weights": transport, "stubs": args.stubs, "url": url}
            tree = config.model_dump(mode="json")
            tree["generator"] |= {"engine": "sglang", "sglang": sglang}
            engine = await SGLangEngine.create(parse(tree, "bench weights"), Path(config.model.path), 0)
            url = url or engine.members[0].url
            try:
                seconds, size, lost = await _update_server(engine, Path(config.model.path))
            finally:
                if first is None:
                    first = engine  # its server serves the other transports
                else:
                    await engine.close()
            speed, raw = size / 1e9 / seconds, size / 1e9 / _machine(size)[medium]
            print_figures(
                bench="weights", way="transport", by=transport, medium=medium, mb=size / 1e6, generator_pause_s=seconds,
                gigabytes_per_second=speed, of_machine=speed / raw, tokens_lost=lost,
            )  # fmt: skip
    finally:
        if first:
            await first.close()


async def _update_server(engine: SGLangEngine, model: Path) -> tuple[float, int, int]:
    """Update a server twice, the second time while it draws. Return seconds and bytes of the second update, and the
    number of tokens that the branches lost."""
    weights = {n: p.detach().numpy() for n, p in AutoModelForCausalLM.from_pretrained(model).state_dict().items()}
    await engine.update_weights(1, weights)  # the first update creates the process group
    params = Params(max_tokens=48, temperature=0.7, stop=frozenset(), seed=0)
    prompt = np.arange(5, 25)

    async def count(i: int) -> int:
        return len([draw async for draw in engine.generate(prompt, params, "update", str(i))])

    branches = [asyncio.create_task(count(i)) for i in range(BRANCHES)]
    await asyncio.sleep(1.0)
    await engine.update_weights(2, weights)
    lost = BRANCHES * params.max_tokens - sum(await asyncio.gather(*branches))
    return engine.updates[-1].seconds, engine.updates[-1].bytes, lost
