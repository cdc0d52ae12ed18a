"""Tests the queue as a real Ray actor: waiting, references without copies, death of its process and loss of objects."""

from __future__ import annotations

import asyncio
import os
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

ray = pytest.importorskip("ray")

from actors.driver.handles import actor_class  # noqa: E402
from actors.replay_queue import ReplayQueue  # noqa: E402
from tests.replay.helpers import fill, open_store, reserve, train  # noqa: E402
from tests.strategies import build  # noqa: E402
from treeadv import wire  # noqa: E402
from treeadv.config import Config, parse  # noqa: E402
from treeadv.data.problems import Problem  # noqa: E402
from treeadv.data.tickets import Ticket  # noqa: E402
from treeadv.errors import BadInput  # noqa: E402
from treeadv.replay.admission import Admission  # noqa: E402
from treeadv.replay.audit import audit  # noqa: E402
from treeadv.replay.draws import Draws  # noqa: E402
from treeadv.replay.store import ReplayStore  # noqa: E402
from treeadv.storage.local import LocalFile  # noqa: E402

ROOT = str(Path(__file__).parents[2])


class Watched(ReplayQueue):
    """A queue that reports the memory of the payloads that it checks and writes, and that a test can kill."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self._places: list[str] = []
        admit = self._store.admit_many

        def watched(fids: Sequence[str], batch: pa.RecordBatch) -> list[Admission]:
            self._places.append(mapping_of(batch))
            return admit(fids, batch)

        self._store.admit_many = watched  # type: ignore[method-assign]

    async def places(self) -> list[str]:
        return self._places

    async def die(self) -> None:
        os._exit(1)

    async def reserve(self, worker: str, count: int) -> list[Ticket]:
        tickets = await super().reserve(worker, count)
        if worker == "unlucky" and not ray.get_runtime_context().was_current_actor_reconstructed:
            os._exit(1)  # the queue has reserved the slots, and its reply is lost
        return tickets


def mapping_of(batch: pa.RecordBatch) -> str:
    """Return the file that is mapped to the memory of the batch's tokens."""
    address = batch.column("token").values.buffers()[1].address
    for line in Path("/proc/self/maps").read_text().splitlines():
        low, high = (int(x, 16) for x in line.split()[0].split("-"))
        if low <= address < high:
            return line.split(maxsplit=5)[-1]
    raise AssertionError("no mapping")


@pytest.fixture(scope="module")
def cluster():
    environment = {"env_vars": {"PYTHONPATH": ROOT}}
    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False, runtime_env=environment)
    yield
    ray.shutdown()


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "tasks.jsonl").write_text('{"problem": "1+1", "answer": "2"}\n' * 3)
    task = {"source": str(tmp_path / "tasks.jsonl")}
    return parse({"task": task, "learner": {"forests_per_step": 2}, "queue": {"max_staleness": 1}}, "test")


def grow(ticket: Ticket, version: int = 0) -> pa.RecordBatch:
    f = build([-1, 0, 0], [2000, 3000, 4000], seed=ticket.seed % 2**32, version=version, forest_id=ticket.forest_id)
    return wire.to_batch([replace(f, prompt_id=ticket.problem.id)])


def test_queue_that_dies_twice_trains_every_forest_once(cluster: None, config: Config, tmp_path: Path) -> None:
    asyncio.run(asyncio.wait_for(scenario(config, str(tmp_path / "run")), 80))
    report = audit(str(tmp_path / "run"))
    assert report.sound and report.rows["trained"]["forests"] == 8, report.table()


async def scenario(config: Config, run_dir: str) -> None:
    actor = actor_class(Watched, max_restarts=1, max_task_retries=0)
    queue = actor.remote(config, run_dir, "one", 0, 0)
    tickets = [(await queue.reserve.remote("w", 1))[0] for _ in range(4)]
    waiting = asyncio.ensure_future(queue.reserve.remote("w", 1))
    leasing = asyncio.ensure_future(queue.lease.remote(2, 0))
    for t in tickets:
        ref = ray.put(grow(t))
        assert [await queue.admit.remote([[t.forest_id]], [ref]) for _ in range(2)] == [[["admitted"]], [["repeat"]]]
    assert all("/dev/shm" in place or "plasma" in place for place in await queue.places.remote())

    lease = await leasing
    batches = await asyncio.gather(*lease.refs)
    assert (
        [wire.from_batch(b)[0].forest_id for b in batches]
        == list(lease.forest_ids)
        == [t.forest_id for t in tickets[:2]]
    )
    assert await queue.lease.remote(2, 0) == lease
    await asyncio.sleep(0.2)
    assert not waiting.done()  # the worker waits, because all four slots are in use
    await queue.ack.remote(lease.lease_id, 1, ())
    (late,) = await waiting
    assert late.draw == 4

    with pytest.raises(ray.exceptions.RayActorError):
        await queue.die.remote()
    lease = await until_up(lambda: queue.lease.remote(2, 1))  # the ledger is unchanged, payloads come from the files
    assert [wire.from_batch(b)[0].forest_id for b in await asyncio.gather(*lease.refs)] == [
        t.forest_id for t in tickets[2:]
    ]
    await queue.ack.remote(lease.lease_id, 2, ())
    assert await queue.forget.remote("w") == 1
    again = (await queue.reserve.remote("v", 1))[0]
    assert (again.draw, again.attempt) == (4, 1) and again.seed != late.seed
    assert await queue.admit.remote([[late.forest_id]], [ray.put(grow(late))]) == [["late"]]
    assert 'treeadv_queue_admitted_total{unit="forests"} 4.0' in await metrics(queue)
    await queue.commit.remote(1, 1)
    await queue.close.remote()
    ray.kill(queue)
    await resumed(actor.remote(config, run_dir, "two", 1, 0), tickets[2:])


async def resumed(queue, undone: list[Ticket]) -> None:
    """Resume from checkpoint 1. The queue repeats step 2 with the same forests, a lost object counts as a lost attempt,
    and `stop` ends the wait."""
    lease = await queue.lease.remote(2, 1)
    assert lease.forest_ids == tuple(t.forest_id for t in undone)
    await queue.ack.remote(lease.lease_id, 2, ())
    ticket = (await queue.reserve.remote("w", 1))[0]
    assert (ticket.draw, ticket.attempt) == (4, 2)
    assert await queue.admit.remote([[ticket.forest_id]], [broken.remote()]) == [["lost"]]
    for step in (3, 4):
        for t in [(await queue.reserve.remote("w", 1))[0] for _ in range(2)]:
            assert await queue.admit.remote([[t.forest_id]], [ray.put(grow(t, step - 1))]) == [["admitted"]]
        lease = await queue.lease.remote(2, step - 1)
        await queue.ack.remote(lease.lease_id, step, ())
    tickets = [(await queue.reserve.remote("w", 1))[0] for _ in range(4)]
    waiting = asyncio.ensure_future(queue.reserve.remote("w", 1))
    await queue.stop.remote()
    assert await waiting == [] and None not in tickets
    await queue.commit.remote(4, 4)
    counts = await queue.counts.remote()
    assert counts["trained"]["forests"] == 8 and set(counts["law_error"].values()) == {0}
    await queue.close.remote()


def test_damaged_forest_is_regrown_and_others_stay_in_memory(cluster: None, config: Config, tmp_path: Path) -> None:
    async def run() -> None:
        queue = ReplayQueue(config, str(tmp_path / "run"), "one", 0, 0)
        for worker in "ab":
            for t in [(await queue.reserve(worker, 1))[0] for _ in range(2)]:
                assert await queue.admit([[t.forest_id]], [ray.put(grow(t))]) == [["admitted"]]
        (file,) = (tmp_path / "run/replay/payloads").iterdir()
        file.write_bytes(file.read_bytes()[:100])
        await queue.forget("a")  # the objects of the worker are lost with the worker
        lease = await queue.lease(2, 0)
        assert [fid.split("-")[1] for fid in lease.forest_ids] == ["000002", "000003"]
        assert [wire.from_batch(b)[0].forest_id for b in await asyncio.gather(*lease.refs)] == list(lease.forest_ids)
        assert (await queue.counts())["dropped"]["damaged"]["forests"] == 2
        assert [(await queue.reserve("c", 1))[0].draw for _ in range(2)] == [0, 1]
        await queue.close()

    asyncio.run(asyncio.wait_for(run(), 60))


def test_orderly_end_waits_for_the_flush_in_progress(
    cluster: None, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config.model_copy(update={"queue": config.queue.model_copy(update={"fsync_interval": 0.05})})
    synced: list[str] = []

    def slowly(file: LocalFile) -> None:
        time.sleep(0.3)
        sync(file)
        synced.append(file.name)

    async def run() -> None:
        nonlocal queue
        queue = ReplayQueue(config, str(tmp_path / "run"), "one", 0, 0)
        first, second = [(await queue.reserve("w", 1))[0] for _ in range(2)]
        await queue.admit([[first.forest_id]], [ray.put(grow(first))])
        with monkeypatch.context() as patch:
            patch.setattr(LocalFile, "sync", slowly)
            await asyncio.sleep(0.1)  # the flush has begun
            ref = asyncio.get_running_loop().create_future()
            late = asyncio.ensure_future(queue.admit([[second.forest_id]], [ref]))
            await asyncio.sleep(0)
            await queue.close()
            assert {"0000000001.arrow", "0000000001.jsonl"} <= set(synced)
        ref.set_result(grow(second))  # the payload arrives after the queue is closed
        with pytest.raises(RuntimeError, match="the replay queue is closed"):
            await late

    queue: Any = None
    sync = LocalFile.sync
    asyncio.run(asyncio.wait_for(run(), 60))
    assert audit(str(tmp_path / "run")).rows["ready"]["forests"] == 1


def test_flush_interval_is_the_configured_one(cluster: None, config: Config, tmp_path: Path) -> None:
    async def run() -> list[float]:
        queue = ReplayQueue(asked, str(tmp_path / "run"), "one", 0, 0)
        times, flush = [], queue._flush_now

        async def noted(what: Any) -> None:
            times.append(time.monotonic() - began)
            await flush(what)

        queue._flush_now = noted  # type: ignore[method-assign]
        began = time.monotonic()
        await queue.address()
        while len(times) < 2:
            await asyncio.sleep(0.05)
        await queue.close()
        return times

    asked = config.model_copy(update={"queue": config.queue.model_copy(update={"fsync_interval": 2.5})})
    first, second = asyncio.run(asyncio.wait_for(run(), 60))
    assert first >= 2.5 and second - first >= 2.0


@ray.remote(num_cpus=0, max_retries=0)
def broken() -> None:
    raise RuntimeError("the grader died")


class DiesWhileItOpens(ReplayQueue):
    """A queue whose first process of a session dies after it has read the journal and before it returns to the
    checkpoint."""

    def __init__(self, config: Config, run_dir: str, session: str, *rest: int) -> None:
        begin, mark = ReplayStore._begin, Path(run_dir) / session

        def dying(store: ReplayStore, *args: Any) -> None:
            if not mark.exists():
                mark.touch()
                os._exit(1)
            begin(store, *args)

        ReplayStore._begin = dying  # type: ignore[method-assign]
        super().__init__(config, run_dir, session, *rest)


def test_queue_killed_while_opening_returns_to_the_checkpoint(cluster: None, config: Config, tmp_path: Path) -> None:
    """The run has taken three steps, of which the first is durable, and four forests are reserved. Ray restarts the
    queue while the learners are at step 1."""
    store = open_store(tmp_path / "run", max_staleness=1)
    steps = {}
    for n in (1, 2, 3):
        fill(store, 2, n - 1)
        steps[n] = train(store, 2, n)
    store.commit(1)
    [reserve(store) for _ in range(4)]
    store.close()
    queue = actor_class(DiesWhileItOpens, max_restarts=1, max_task_retries=-1).remote(
        config, str(tmp_path / "run"), "resumed", 1, 0
    )
    counts = ray.get(queue.counts.remote(), timeout=60)
    assert (tmp_path / "run/resumed").exists()
    assert (
        counts["states"] == {"reserved": 0, "ready": 4, "leased": 0, "trained": 2, "dropped": 0}
        and counts["last_step"] == 1
    )
    lease = ray.get(queue.lease.remote(2, 1), timeout=60)
    assert lease.forest_ids == steps[2]
    ray.get(queue.ack.remote(lease.lease_id, 2, ()), timeout=60)
    ticket = ray.get(queue.reserve.remote("w", 1), timeout=60)[0]
    assert (ticket.draw, ticket.attempt) == (6, 1)
    ray.get(queue.close.remote())
    assert audit(str(tmp_path / "run")).sound


def test_reservation_repeated_after_a_death_holds_one_slot(cluster: None, config: Config, tmp_path: Path) -> None:
    queue = actor_class(Watched, max_restarts=1, max_task_retries=-1).remote(config, str(tmp_path / "run"), "one", 0, 0)
    first = ray.get(queue.reserve.remote("unlucky", 1), timeout=60)[0]
    counts = ray.get(queue.counts.remote(), timeout=60)
    assert first.draw == 0 and counts["states"]["reserved"] == 1 and counts["next_draw"] == 1
    assert ray.get(queue.reserve.remote("unlucky", 1), timeout=60)[0].draw == 1
    ray.get(queue.close.remote())


async def until_up(call):
    """Repeat a call until the actor that Ray restarts answers."""
    for _ in range(100):
        try:
            return await call()
        except ray.exceptions.RayActorError:
            await asyncio.sleep(0.2)
    raise AssertionError("the actor did not come back within 20 s")


async def metrics(queue) -> str:
    """Return the page of metrics after an update of the figures."""
    await queue.counts.remote()
    with urllib.request.urlopen(f"http://{await queue.address.remote()}/metrics") as answer:
        return answer.read().decode()


def test_threshold_is_shared_and_survives_a_queue_restart(cluster: None, config: Config, tmp_path: Path) -> None:
    """Every ticket has the threshold, so a restarted generator uses the threshold of the others."""
    sampling = config.sampling.model_copy(update={"tau": 9.0, "tau_quantile": 0.5, "tau_min_tokens": 1})
    config = config.model_copy(update={"sampling": sampling})

    async def scenario() -> None:
        actor = actor_class(Watched, max_restarts=1, max_task_retries=0)
        queue = actor.remote(config, str(tmp_path / "run"), "one", 0, 0)
        first = (await queue.reserve.remote("a", 1))[0]
        assert first.tau == 9.0  # the queue has admitted no forest yet
        forest = grow(first)
        await queue.admit.remote([[first.forest_id]], [ray.put(forest)])
        second = (await queue.reserve.remote("b", 1))[0]
        median = float(np.median(forest.column("entropy").values.to_numpy()))
        assert second.tau == pytest.approx(median, rel=0.2)
        with pytest.raises(ray.exceptions.RayActorError):
            await queue.die.remote()
        (third,) = await until_up(lambda: queue.reserve.remote("c", 1))
        assert third.tau == second.tau
        ray.kill(queue)

    asyncio.run(scenario())


class FailsAtDraw17:
    """A source in which one draw raises an error, as a family of reasoning-gym may do."""

    def __getitem__(self, draw: int) -> Problem:
        if draw == 17:
            raise ZeroDivisionError("a family divides by zero")
        return Problem(id=str(draw), problem="1+1", answer="2", verifier="math", meta="")


def test_failing_draw_is_skipped_and_others_are_reserved(cluster: None, config: Config, tmp_path: Path) -> None:
    task = {"source": "reasoning-gym", "families": [{"name": "gcd"}]}
    config = parse({"task": task, "learner": {"forests_per_step": 20}, "queue": {"max_staleness": 0}}, "test")

    async def run() -> list[int]:
        queue = ReplayQueue(config, str(tmp_path / "run"), "one", 0, 0)
        queue._draws = queue._reservations._draws = Draws(FailsAtDraw17())
        tickets = await asyncio.gather(*(queue.reserve(f"worker-{n}", 1) for n in range(20)))
        assert (await queue.counts())["dropped"]["no_prompt"]["forests"] == 1
        await queue.close()
        return [t.draw for (t,) in tickets]

    assert sorted(asyncio.run(asyncio.wait_for(run(), 60))) == [n for n in range(21) if n != 17]
    report = audit(str(tmp_path / "run"))
    assert report.sound and report.dropped == {"no_prompt": 1}, report.table()


class SlowSource:
    """A source that needs a second for each draw, as some families of reasoning-gym do."""

    def __getitem__(self, draw: int) -> Problem:
        time.sleep(1.0)
        return Problem(id=str(draw), problem="1+1", answer="2", verifier="math", meta="")


class BrokenSource:
    def __getitem__(self, draw: int) -> Problem:
        raise KeyError("answer")


def test_slow_draw_does_not_stop_the_queue(cluster: None, config: Config, tmp_path: Path) -> None:
    async def run() -> None:
        queue = ReplayQueue(config, str(tmp_path / "run"), "one", 0, 0)
        queue._draws = queue._reservations._draws = Draws(SlowSource())
        reserving = [asyncio.ensure_future(queue.reserve(worker, 1)) for worker in "ab"]
        delays = []
        while not all(r.done() for r in reserving):
            began = time.monotonic()
            await queue.counts()
            await asyncio.sleep(0.01)
            delays.append(time.monotonic() - began)
        assert max(delays) < 0.5 and [(await r)[0].draw for r in reserving] == [0, 1]
        await queue.close()

    asyncio.run(asyncio.wait_for(run(), 60))


def test_source_that_always_fails_ends_the_run(cluster: None, config: Config, tmp_path: Path) -> None:
    async def run() -> None:
        queue = ReplayQueue(config, str(tmp_path / "run"), "one", 0, 0)
        queue._draws = queue._reservations._draws = Draws(BrokenSource())
        with pytest.raises(
            BadInput, match=r"50 draws in a row gave no prompt; the last error \(draw 49\) is KeyError: 'answer'"
        ):
            (await queue.reserve("a", 1))[0]
        await queue.close()

    asyncio.run(asyncio.wait_for(run(), 60))
