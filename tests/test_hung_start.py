"""Tests actors that hang in their constructor. Such an actor is lost after its deadline. An actor that waits for
resources has no deadline."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray

from actors.driver.handles import Handle, actor_class
from actors.driver.liveness import Deadlines, Hung, restart_when_hung, wait_until_lost
from actors.heartbeat import Heartbeat


class Role(Heartbeat):
    """An actor class. Its process number `bad` (from 1) stops in the constructor, or starts slowly if `seconds` is
    given."""

    def __init__(self, log: str, bad: int, seconds: float = 0.0) -> None:
        with open(log, "a") as file:
            file.write(f"{os.getpid()}\n")
        if len(Path(log).read_text().split()) == bad and seconds:
            time.sleep(seconds)
        elif len(Path(log).read_text().split()) == bad:
            os.kill(os.getpid(), signal.SIGSTOP)


@pytest.fixture(scope="module", autouse=True)
def running_ray() -> Iterator[None]:
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def role(log: Path, bad: int, seconds: float = 0.0, **options: object) -> Handle:
    log.touch()
    return actor_class(Role, **options).remote(str(log), bad, seconds)


def pids(log: Path) -> list[int]:
    return [int(line) for line in log.read_text().split()]


async def wait_for_beat(handle: Handle, seconds: float) -> None:
    await asyncio.wait_for(asyncio.ensure_future(handle.beat.remote()), seconds)


def test_stopped_constructor_is_lost_after_the_deadline(tmp_path: Path) -> None:
    async def scenario() -> Exception:
        stopped = role(tmp_path / "log", 1)
        try:
            return await asyncio.wait_for(wait_until_lost(stopped, "x-1", Deadlines(start=2.0, heartbeat=60.0)), 60)
        finally:
            ray.kill(stopped)

    cause = asyncio.run(scenario())
    assert isinstance(cause, Hung) and str(cause) == "x-1 did not start within 2 s (run.start_timeout)"


@pytest.mark.slow
def test_actor_stopped_in_its_constructor_is_restarted(tmp_path: Path) -> None:
    """Ray keeps the calls of an actor that it restarts, such as the queue."""
    log = tmp_path / "log"

    async def scenario() -> None:
        actor = role(log, 1, max_restarts=5, max_task_retries=-1)
        # A busy machine may need seconds to start a process, so the deadline is long
        watch = asyncio.create_task(restart_when_hung(actor, "queue", Deadlines(start=20.0, heartbeat=60.0)))
        await wait_for_beat(actor, 100)
        watch.cancel()
        ray.kill(actor)

    asyncio.run(scenario())
    stopped, _ = pids(log)
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(stopped).wait(30)  # Ray waits a while before it sends SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.0, 15.0])
def test_restart_has_the_deadline_of_a_start(tmp_path: Path, seconds: float, caplog: pytest.LogCaptureFixture) -> None:
    """Ray restarts an actor, such as the queue, whose process dies. The heartbeat that waits for the new process does
    not end the restart early, and does not keep a stopped constructor."""
    log = tmp_path / "log"
    deadlines = Deadlines(start=20.0, heartbeat=60.0) if not seconds else Deadlines(start=60.0, heartbeat=4.0)

    async def scenario() -> None:
        actor = role(log, 2, seconds, max_restarts=5, max_task_retries=-1)
        await wait_for_beat(actor, 60)
        watch = asyncio.create_task(restart_when_hung(actor, "queue", deadlines))
        await asyncio.sleep(3)
        os.kill(pids(log)[0], signal.SIGKILL)
        while len(pids(log)) < (2 if seconds else 3):
            await asyncio.sleep(0.5)
        while True:
            try:
                await wait_for_beat(actor, 60)
                break
            except ray.exceptions.ActorUnavailableError:
                await asyncio.sleep(0.5)
        watch.cancel()
        ray.kill(actor)

    asyncio.run(asyncio.wait_for(scenario(), 200))
    assert len(pids(log)) == (2 if seconds else 3)
    assert ("queue did not start within 20 s" in caplog.text) == (not seconds) and "no heartbeat" not in caplog.text


def test_actor_without_resources_has_no_deadline(tmp_path: Path) -> None:
    async def scenario() -> None:
        waiting = role(tmp_path / "log", 0, num_cpus=2)
        lost = asyncio.create_task(wait_until_lost(waiting, "x-1", Deadlines(start=0.5, heartbeat=60.0)))
        began = time.monotonic()
        await asyncio.wait([lost], timeout=3.0)
        assert not lost.done() and time.monotonic() - began >= 3.0
        lost.cancel()
        ray.kill(waiting)

    asyncio.run(scenario())
