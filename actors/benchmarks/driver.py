"""`treeadv bench driver`: measures what a forest costs outside of the model. It prints one JSON object per line.

The whole pipeline runs with its generators, reward actors, queue, driver and learner, but without a model: an engine
returns the same token again and again, and the learner's step only reads the forests. The lines of one run are

    pipeline  forests/s from prompt to acknowledged step, `ms_a_forest` by the clock, `cpu_ms_a_forest` over all
              processes, and `calls_a_forest`, the calls of actors that the driver makes for a forest
    call      the calls of one method
    part      `ms_a_forest` in CPU time of one part. `queue`, `generator`, `reward`, `learner`, `driver` and `ray`
              (raylet, GCS and idle workers) are processes. The other parts are shares of the process `of`
    memory    resident MB of the processes of a role before and after the counted steps
    tenths    forests/s in the first and in the last tenth of the counted steps, and the ratio of the two
    files     bytes of the journal and of metrics.jsonl at the end, and the seconds to read the journal as a resume does
              (`replay_s`) and to audit the run (`audit_s`)

With --work prepared, generators deliver copies of one forest and reward actors give fixed grades. With --work drawn,
the sampler draws every token from the engine and the verifier `exact` judges every leaf. That work is not part of the
goal of 1 ms a forest.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.actor import ActorMethod
from rich.console import Console
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from actors.benchmarks.lines import print_figures
from actors.benchmarks.options import bench_parser
from actors.benchmarks.stubs.generator import MeasuredGenerator, PreparedGenerator
from actors.benchmarks.stubs.learner import StubLearner
from actors.benchmarks.stubs.queue import MeasuredQueue
from actors.benchmarks.stubs.reward import MeasuredReward, PreparedReward
from actors.driver import pipeline
from actors.driver.attempt_outcome import EndRequest
from actors.driver.cluster import Cluster
from actors.driver.handles import Handle
from actors.driver.recorder import Recorder
from actors.driver.roles import Roles
from actors.driver.supervisor import connect
from treeadv.config import Config, parse
from treeadv.errors import BadInput
from treeadv.jsonl import JsonObject
from treeadv.learning.report import StepReport
from treeadv.replay.audit import audit
from treeadv.replay.journal import Reader
from treeadv.replay.ledger import Ledger
from treeadv.replay.recovery import recover
from treeadv.report.progress import Progress
from treeadv.storage.folder import open_folder
from treeadv.storage.run_folder import RunFolder

_WORK = {
    "prepared": Roles(queue=MeasuredQueue, generator=PreparedGenerator, reward=PreparedReward, learner=StubLearner),
    "drawn": Roles(queue=MeasuredQueue, generator=MeasuredGenerator, reward=MeasuredReward, learner=StubLearner),
}
_WORDS = ("<end>", "1", "2")


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The clock, the bytes on disk, the calls of actors so far, and CPU seconds by (process, part)."""

    time: float
    calls: Counter[str]  # by method
    forest_bytes: int
    cpu: Counter[tuple[str, str]]
    memory: Counter[str]  # resident bytes by process


def main(argv: list[str]) -> None:
    p = bench_parser("treeadv bench driver", __doc__)
    p.add_argument("--work", choices=_WORK, default="prepared")
    p.add_argument("--steps", type=int, default=40, help="steps that are counted")
    p.add_argument("--skip", type=int, default=5, help="first steps that are not counted")
    p.add_argument("--per-step", type=int, default=32, help="forests of a step")
    p.add_argument("--generators", type=int, default=1)
    p.add_argument("--rewards", type=int, default=1)
    p.add_argument("--in-flight", type=int, default=32, help="forests that a generator grows at a time")
    p.add_argument("--leaves", type=int, default=16)
    p.add_argument("--tokens", type=int, default=64, help="tokens of one segment; with --work drawn those of a leaf")
    args = p.parse_args(argv)
    for name in ("steps", "skip", "per_step", "generators", "rewards", "in_flight", "tokens"):
        if getattr(args, name) < 1:
            raise BadInput(f"--{name.replace('_', '-')} {getattr(args, name)}: must be at least 1")
    if args.leaves < 4 or args.leaves % 2:
        raise BadInput(f"--leaves {args.leaves}: must be an even number of at least 4")
    with tempfile.TemporaryDirectory() as root:
        first, last = asyncio.run(_run(connect(_config(Path(root), args)), args))
        ray.shutdown()
        _print(first, last, args)
        _print_files(Path(root) / "run", args)


def _config(root: Path, args: argparse.Namespace) -> Config:
    """Write a task and a model folder without weights, and return the configuration of the run."""
    tokenizer = Tokenizer(WordLevel({w: i for i, w in enumerate(_WORDS)}, unk_token=_WORDS[0]))
    (root / "model").mkdir()
    tokenizer.save(str(root / "model" / "tokenizer.json"))
    (root / "model" / "config.json").write_text('{"model_type": "llama", "eos_token_id": 0}')
    (root / "model" / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    (root / "tasks.jsonl").write_text('{"problem": "1", "answer": "2"}\n' * 64)
    engine = "actors.benchmarks.stubs.generator:StubEngine"
    tree: JsonObject = {
        "run": {"root": str(root), "name": "run", "steps": args.skip + args.steps},
        "model": {"path": str(root / "model")},
        "task": {"source": str(root / "tasks.jsonl"), "verifier": "exact"},
        "sampling": {"leaves": args.leaves, "max_tokens": args.tokens, "tau": 1.0, "rule": "entropy"},
        "generator": {"count": args.generators, "forests": args.in_flight, "engine": engine},
        "reward": {"count": args.rewards},
        "learner": {"forests_per_step": args.per_step, "threads": 1},
        "queue": {"max_staleness": 1},
        "metrics": {"port": 0},
    }
    return parse(tree, "bench driver")


class _Watch(Recorder):
    """A recorder that also takes a snapshot of every actor after the steps `at`."""

    def __init__(self, folder: RunFolder, progress: Progress, at: tuple[int, int], calls: Counter[str]) -> None:
        super().__init__(folder, progress)
        self.taken: list[Snapshot] = []
        self._at, self._calls = at, calls

    async def record(self, cluster: Cluster, step: int, report: StepReport) -> None:
        await super().record(cluster, step, report)
        if step in self._at:
            self.taken.append(await self._snapshot(cluster))

    async def _snapshot(self, cluster: Cluster) -> Snapshot:
        calls, now = self._calls.copy(), time.perf_counter()
        members: list[tuple[str, Handle]] = [("queue", cluster.queue)]
        members += [("generator", g) for g in cluster.generators.names]
        members += [("reward", r) for r in cluster.rewards.names]
        members += [("learner", m) for m in cluster.learners.members]
        cpu: Counter[tuple[str, str]] = Counter({("driver", "all"): time.process_time()})
        memory: Counter[str] = Counter({"driver": psutil.Process().memory_info().rss})
        known = set()
        for role, member in members:
            pid, used = await member.used.remote()
            known.add(pid)
            memory[role] += psutil.Process(pid).memory_info().rss
            for component, seconds in used.items():
                cpu[role, component] += seconds
        for process in psutil.Process().children(recursive=True):
            if process.pid not in known:
                times = process.cpu_times()
                cpu["ray", "all"] += times.user + times.system
                memory["ray"] += process.memory_info().rss
        size = (await cluster.queue.counts.remote())["disk_bytes"]
        return Snapshot(time=now, calls=calls, forest_bytes=size, cpu=cpu, memory=memory)


async def _run(config: Config, args: argparse.Namespace) -> tuple[Snapshot, Snapshot]:
    folder, config, lock = RunFolder.create(config, "run")
    progress = Progress(config.run.steps, Console(stderr=True, quiet=True))
    with _counted_calls() as calls:
        recorder = _Watch(folder, progress, (args.skip, config.run.steps), calls)
        cluster = Cluster(config, folder, _WORK[args.work])
        recorder.follow(cluster)
        try:
            await cluster.start()
            recorder.resume()
            await pipeline.run(cluster, recorder, EndRequest())
        finally:
            await cluster.end()
            lock.release()
    first, last = recorder.taken
    return first, last


@contextmanager
def _counted_calls() -> Iterator[Counter[str]]:
    """Count the calls of actors that this process makes, by method. Heartbeats do not count."""
    calls: Counter[str] = Counter()
    remote = ActorMethod._remote

    def counted(method: Any, *args: Any, **more: Any) -> Any:
        if method._method_name not in ("beat", "used"):
            calls[method._method_name] += 1
        return remote(method, *args, **more)

    ActorMethod._remote = counted
    try:
        yield calls
    finally:
        ActorMethod._remote = remote


def _print(first: Snapshot, last: Snapshot, args: argparse.Namespace) -> None:
    forests, seconds = args.steps * args.per_step, last.time - first.time
    # an idle worker that ends takes its seconds along, so those of Ray may fall
    cpu = {name: max(0.0, used - first.cpu[name]) for name, used in last.cpu.items()}
    calls = last.calls - first.calls
    every = sum(used for (_, component), used in cpu.items() if component == "all")
    shape = {"work": args.work, "generators": args.generators, "rewards": args.rewards, "per_step": args.per_step}
    print_figures(
        bench="driver", way="pipeline", **shape, forests=forests,
        forest_bytes=round((last.forest_bytes - first.forest_bytes) / forests), seconds=seconds,
        forests_per_s=forests / seconds, ms_a_forest=1e3 * seconds / forests, cpu_ms_a_forest=1e3 * every / forests,
        calls_a_forest=calls.total() / forests,
    )  # fmt: skip
    for method, n in calls.most_common():
        print_figures(bench="driver", way="call", method=method, calls_a_forest=n / forests)
    for (process, component), used in sorted(cpu.items(), key=lambda item: -item[1]):
        of = {} if component == "all" else {"of": process}
        name = process if component == "all" else component
        print_figures(bench="driver", way="part", part=name, **of, ms_a_forest=1e3 * used / forests)
    for role, size in last.memory.items():
        print_figures(bench="driver", way="memory", role=role, first_mb=first.memory[role] / 1e6, last_mb=size / 1e6)


def _print_files(run: Path, args: argparse.Namespace) -> None:
    clock = [record["elapsed_s"] for record in RunFolder(run).records()][args.skip - 1 :]
    tenth = max(1, args.steps // 10)
    first, last = (tenth * args.per_step / (clock[i + tenth] - clock[i]) for i in (0, args.steps - tenth))
    print_figures(bench="driver", way="tenths", first_per_s=first, last_per_s=last, last_over_first=last / first)
    journal = sum(file.stat().st_size for file in (run / "replay" / "journal").rglob("*") if file.is_file())
    began = time.perf_counter()
    deque(recover(Reader(open_folder(str(run)).child("replay").child("journal")), Ledger()), maxlen=0)
    replay = time.perf_counter() - began
    began = time.perf_counter()
    report = audit(run)
    print_figures(
        bench="driver", way="files", journal_mb=journal / 1e6, metrics_mb=(run / "metrics.jsonl").stat().st_size / 1e6,
        replay_s=replay, audit_s=time.perf_counter() - began, sound=report.sound,
        trained=report.rows["trained"]["forests"],
    )  # fmt: skip
