"""`treeadv bench queue`: compares the replay queue with Ray's own queue and with a copy in memory. It prints one JSON
object per line.

The same forests are transferred by four methods from a producer to a consumer, which sums every array:

    memcpy          numpy copies the arrays. This bounds every method that copies once
    ray_queue       pickled forests through ray.util.queue.Queue, put and get one at a time, as in its documentation
    ray_queue_many  the same with --window calls at a time and batched gets
    ray_queue_batch the same with --window forests in each call of put and get
    treeadv         the queue actor admits, leases and acknowledges forests, with --window forests in each call of
                    admit. Each forest is on disk and in the journal (fsync as --fsync) before it is leased. Slots are
                    reserved before the measurement starts, as a run reserves them before it grows a forest

`store` measures the replay queue without Ray. `recovery` measures the seconds to open a journal of a given length.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import pickle
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import ray
from ray.util.queue import Queue

from actors.benchmarks.options import bench_parser
from actors.benchmarks.synthetic import binary_forest
from actors.driver.handles import actor_class
from actors.replay_queue import ReplayQueue
from treeadv import wire
from treeadv.command_line import positive
from treeadv.config import QueueConfig, parse
from treeadv.errors import BadInput
from treeadv.forest import Forest
from treeadv.jsonl import JsonObject
from treeadv.replay.store import ReplayStore


def main(argv: list[str]) -> None:
    p = bench_parser("treeadv bench queue", __doc__)
    p.add_argument("--forests", type=positive, default=256)
    p.add_argument("--leaves", type=positive, default=16)
    p.add_argument(
        "--tokens", type=positive, default=1024, help="tokens of one segment; L leaves have 2 L - 2 segments"
    )
    p.add_argument("--per-step", type=positive, default=16, help="forests of one lease")
    p.add_argument("--window", type=positive, default=16, help="forests in a call, or calls in progress at a time")
    p.add_argument("--fsync", choices=("always", "interval", "none"), default="interval")
    p.add_argument(
        "--records", type=int, nargs="*", default=[1_000, 10_000, 100_000], help="journal lengths for `recovery`"
    )
    args = p.parse_args(argv)
    if args.forests % args.per_step:
        raise BadInput(f"--forests {args.forests}: must be a multiple of --per-step {args.per_step}")
    forest = binary_forest(args.leaves, args.tokens)
    size = wire.to_batch([forest]).nbytes
    report("memcpy", rate(memcpy(forest, args.forests), args.forests, size))
    with tempfile.TemporaryDirectory() as folder:
        seconds = store(Path(folder), forest, args)
    report("store", {"fsync": args.fsync, **rate(seconds, args.forests, size)})
    through_ray(forest, size, args)
    for records in args.records:
        report("recovery", recovery(records))


def report(method: str, figures: JsonObject) -> None:
    print(json.dumps({"bench": "queue", "way": method, **figures}), flush=True)


def rate(seconds: float, forests: int, size: int) -> dict[str, float | int]:
    return {
        "forests": forests,
        "forest_bytes": size,
        "seconds": round(seconds, 4),
        "forests_per_s": round(forests / seconds, 1),
        "gb_per_s": round(forests * size / seconds / 1e9, 4),
    }


def use(forest: Forest) -> None:
    """Read every token array once. A consumer does at least this."""
    for array in (forest.token, forest.logprob, forest.entropy, forest.version):
        array.sum()


def timed(run: Callable[[], None]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def memcpy(forest: Forest, n: int) -> float:
    arrays = [forest.token, forest.logprob, forest.entropy, forest.version]

    def run() -> None:
        for _ in range(n):
            token, logprob, entropy, version = (a.copy() for a in arrays)
            use(replace(forest, token=token, logprob=logprob, entropy=entropy, version=version))

    return timed(run)


def settings(args: argparse.Namespace) -> QueueConfig:
    """Return the configuration of a queue with a slot for every forest and for one more step, which warms it up."""
    return QueueConfig(fsync=args.fsync, max_staleness=args.forests // args.per_step)


def store(folder: Path, forest: Forest, args: argparse.Namespace) -> float:
    queue = ReplayStore(str(folder), settings(args), forests_per_step=args.per_step, seed=0, session="bench", step=0)

    def run() -> None:
        for step in range(args.forests // args.per_step):
            for _ in range(0, args.per_step, args.window):
                ids = [r.forest_id for r in queue.reserve_many("w", "", str, min(args.window, args.per_step))]
                queue.admit_many(ids, wire.to_batch([replace(forest, forest_id=fid) for fid in ids], checked=True))
                if args.fsync == "always":
                    queue.sync()
            lease = queue.lease(args.per_step, 0, lambda fid: use(wire.from_batch(queue.payload(fid))[0]))
            assert lease is not None
            queue.ack(lease.lease_id, step + 1)
            if args.fsync != "none":
                queue.sync()

    seconds = timed(run)
    queue.close()
    return seconds


def through_ray(forest: Forest, size: int, args: argparse.Namespace) -> None:
    root = str(Path(__file__).parents[1])
    env = {"env_vars": {"PYTHONPATH": root}}
    # "local" starts a cluster of its own; without it Ray joins a cluster that already runs on this machine.
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, runtime_env=env)
    try:
        alone, many = ray_queue(forest, args), asyncio.run(ray_queue_many(forest, args))
        batched = ray_queue_batch(forest, args)
        with tempfile.TemporaryDirectory() as folder:
            ours = asyncio.run(treeadv_queue(Path(folder), forest, args))
    finally:
        ray.shutdown()
    report("ray_queue", rate(alone, args.forests, size))
    report("ray_queue_many", rate(many, args.forests, size))
    report("ray_queue_batch", rate(batched, args.forests, size))
    others = {"ray_queue": alone, "ray_queue_many": many, "ray_queue_batch": batched}
    speed = {f"speedup_vs_{name}": round(seconds / ours, 2) for name, seconds in others.items()}
    report("treeadv", {"fsync": args.fsync, **rate(ours, args.forests, size), **speed})


def ray_queue(forest: Forest, args: argparse.Namespace) -> float:
    queue = Queue()
    queue.put(pickle.dumps(forest))  # starts the actor of the queue
    queue.get()

    def run() -> None:
        for n in range(args.forests):
            queue.put(pickle.dumps(replace(forest, forest_id=str(n))))
            use(pickle.loads(queue.get()))

    seconds = timed(run)
    queue.shutdown()
    return seconds


async def ray_queue_many(forest: Forest, args: argparse.Namespace) -> float:
    queue = Queue()
    await queue.put_async(b"")
    await queue.get_async()
    began = time.perf_counter()
    for first in range(0, args.forests, args.window):
        batch = range(first, min(args.forests, first + args.window))
        await asyncio.gather(*(queue.put_async(pickle.dumps(replace(forest, forest_id=str(n)))) for n in batch))
        for data in queue.get_nowait_batch(len(batch)):
            use(pickle.loads(data))
    seconds = time.perf_counter() - began
    queue.shutdown()
    return seconds


def ray_queue_batch(forest: Forest, args: argparse.Namespace) -> float:
    queue = Queue()
    queue.put(b"")
    queue.get()

    def run() -> None:
        for first in range(0, args.forests, args.window):
            batch = range(first, min(args.forests, first + args.window))
            queue.put_nowait_batch([pickle.dumps(replace(forest, forest_id=str(n))) for n in batch])
            for data in queue.get_nowait_batch(len(batch)):
                use(pickle.loads(data))

    seconds = timed(run)
    queue.shutdown()
    return seconds


async def treeadv_queue(folder: Path, forest: Forest, args: argparse.Namespace) -> float:
    (folder / "tasks.jsonl").write_text('{"problem": "1+1", "answer": "2"}\n')
    task, learner = {"source": str(folder / "tasks.jsonl")}, {"forests_per_step": args.per_step}
    config = parse({"task": task, "learner": learner, "queue": settings(args).model_dump()}, "bench")
    queue = actor_class(ReplayQueue).remote(config, str(folder / "run"), "bench", 0, 0)
    warm_up, steps = args.per_step, args.forests // args.per_step
    ids: list[str] = []
    while len(ids) < args.forests + warm_up:
        ids += [t.forest_id for t in await queue.reserve.remote("w", args.forests + warm_up - len(ids))]

    async def produce(some: list[str]) -> None:
        """Send lists of forests. The next list is made during the call for the one before."""
        admitting: Awaitable[object] = asyncio.sleep(0)
        for first in range(0, len(some), args.window):
            batch = some[first : first + args.window]
            forests = wire.to_batch([replace(forest, forest_id=fid) for fid in batch], checked=True)
            ref = ray.put(forests)
            await admitting
            admitting = queue.admit.remote([batch], [ref])
        await admitting

    async def consume(first: int, last: int) -> None:
        for step in range(first, last + 1):
            lease = await queue.lease.remote(args.per_step, 0)
            for f in wire.rows(await asyncio.gather(*lease.refs), lease.rows):
                use(f)
            await queue.ack.remote(lease.lease_id, step, ())

    # The first calls import libraries. The queues of Ray also carry a first forest before the measurement.
    await asyncio.gather(produce(ids[:warm_up]), consume(1, 1))
    began = time.perf_counter()
    await asyncio.gather(produce(ids[warm_up:]), consume(2, steps + 1))
    seconds = time.perf_counter() - began
    await queue.close.remote()
    ray.kill(queue)
    return seconds


def recovery(records: int) -> dict[str, float | int]:
    """Measure the seconds to open a folder whose journal has about `records` records.

    The forests are small. All except the last ones are trained."""
    with tempfile.TemporaryDirectory() as folder:
        config = QueueConfig(fsync="none", max_staleness=0)
        queue = ReplayStore(folder, config, forests_per_step=16, seed=0, session="bench", step=0)
        small, step = binary_forest(2, 4), 0
        while queue.files.records < records:
            for _ in range(16):
                record = queue.reserve("w", "", str)
                assert record is not None
                queue.admit(record.forest_id, wire.to_batch([replace(small, forest_id=record.forest_id)]))
            lease = queue.lease(16, 0)
            assert lease is not None
            step += 1
            queue.ack(lease.lease_id, step)
            queue.commit(step)
        queue.close()
        again = ReplayStore(folder, config, forests_per_step=16, seed=0, session="again", step=step)
        opening = again.files.opening
        again.close()
    speed = round(opening.records / opening.seconds)
    return {"records": opening.records, "seconds": round(opening.seconds, 4), "records_per_s": speed}
