"""Tests the pool under faults: timeouts, deaths, memory, cancellation, repeated restarts. No fault may affect another
answer."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from treeadv.errors import BadInput
from treeadv.forest import Verdict
from treeadv.rewards.judgement import Answer
from treeadv.rewards.sandbox import pool as pool_module
from treeadv.rewards.sandbox import process
from treeadv.rewards.sandbox.pool import PoolBroken, VerifierPool

FOLDER = Path(__file__).parent
SYMBOLIC = Answer(
    response=r"\boxed{\operatorname{lcm}(x, 3y)}", gold="3xy", verifier="math"
)  # this answer needs a worker


def call(name: str, response: str = "", meta: str = "") -> Answer:
    return Answer(response=response, gold="1", verifier=f"verifier_functions:{name}", meta=json.dumps({"meta": meta}))


def wait_for_text(path: Path) -> str:
    give_up = time.monotonic() + 20
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < give_up, f"{path} was never written"
        time.sleep(0.01)
    return path.read_text()


def test_judgements_come_in_the_order_of_the_answers(grade):
    answers = [call("length", "x" * (n % 7)) for n in range(40)]
    assert [j.reward for j in grade(*answers)] == [n % 7 for n in range(40)]


def test_equal_answers_of_a_call_are_judged_once(grade, tmp_path):
    log = tmp_path / "calls"
    judged = grade(*[call("append", r, str(log)) for r in "abaabca"])
    assert all(j.verdict is Verdict.VERIFIED for j in judged)
    assert sorted(log.read_text().split()) == ["a", "b", "c"]


def test_output_of_a_verifier_does_not_reach_the_protocol(grade):
    [j] = grade(call("detailed"))
    assert (j.verdict, j.detail) == (Verdict.VERIFIED, "fine")


def test_workers_import_no_torch_and_no_ray(grade):
    [j] = grade(call("whoami"))
    assert json.loads(j.detail)["heavy"] == []


def test_workers_inherit_no_credentials_but_their_own_variables(loop, monkeypatch):
    variables = {"AWS_SECRET_ACCESS_KEY": None, "TREEADV_VERIFIER_HOST": "here", "LC_TIME": "C", "OMP_NUM_THREADS": "1"}
    for name in variables:
        monkeypatch.setenv(name, variables[name] or "secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "8")

    async def scene():
        pool = VerifierPool(workers=1, timeout=2.0, memory_mb=1024)
        try:
            return await pool.grade([call("environment", name) for name in variables])
        finally:
            await pool.close()

    assert [j.detail for j in loop.run(scene())] == [str(value) for value in variables.values()]


@pytest.mark.parametrize("score", ["nan", "inf"])
def test_score_that_is_no_number_is_a_crash(grade, score):
    [j] = grade(call("parse", score))
    assert (j.verdict, j.reward, j.detail) == (
        Verdict.CRASH,
        0.0,
        f"ValueError: the result is {score}, not a finite number",
    )


def test_small_memory_limit_keeps_the_process_between_items(loop):
    async def scene():
        pool = VerifierPool(workers=1, timeout=5.0, memory_mb=256)
        try:
            symbolic = [
                Answer(
                    response=rf"\boxed{{\operatorname{{lcm}}(x, {2 * n + 1}y)}}", gold=f"{2 * n + 1}xy", verifier="math"
                )
                for n in range(20)
            ]
            return await pool.grade(symbolic), pool.restarts
        finally:
            await pool.close()

    judged, restarts = loop.run(scene())
    assert all(j.verdict is Verdict.VERIFIED for j in judged) and restarts == 0


def test_exception_in_a_verifier_is_a_crash_with_its_text(grade):
    [j] = grade(call("fail"))
    source = (FOLDER / "verifier_functions.py").read_text().splitlines()
    line = next(n for n, text in enumerate(source, 1) if "furlong" in text)
    assert (j.verdict, j.reward) == (Verdict.CRASH, 0.0)
    assert j.detail == f"ValueError: no such unit: furlong ({FOLDER / 'verifier_functions.py'}:{line})"


@pytest.mark.parametrize("name", ["deaf", "swallow"])
def test_hang_is_killed_at_the_limit_and_the_worker_returns(loop, name):
    async def scene():
        pool = VerifierPool(workers=1, timeout=1.0, memory_mb=1024)
        try:
            await pool.grade([SYMBOLIC])
            await pool._spare
            began = time.monotonic()
            [hung] = await pool.grade([call(name)])
            ended = time.monotonic()
            [after] = await pool.grade([SYMBOLIC])
            return hung, ended - began, after, time.monotonic() - ended, pool.restarts
        finally:
            await pool.close()

    hung, took, after, back, restarts = loop.run(scene())
    assert (hung.verdict, hung.detail) == (Verdict.TIMEOUT, "killed after 1 s")
    assert 1.0 <= hung.seconds < 1.5 and took < 2.0
    assert after.verdict is Verdict.VERIFIED and back < 1.0
    assert restarts == 1


def test_alarm_ends_an_item_and_keeps_the_process(grade, pool):
    before = pool.restarts
    [j] = grade(call("sleep", "30"))
    assert (j.verdict, j.detail) == (Verdict.TIMEOUT, "over 1.6 s")
    assert j.seconds < 2.0
    assert pool.restarts == before


def test_waiting_in_the_queue_does_not_count_against_an_answer(loop):
    async def scene():
        pool = VerifierPool(workers=1, timeout=1.0, memory_mb=1024)
        try:
            return await pool.grade([call("sleep", f"0.5{n}") for n in range(5)])
        finally:
            await pool.close()

    assert [j.verdict for j in loop.run(scene())] == [Verdict.VERIFIED] * 5


def test_death_of_a_worker_loses_no_answer(loop, grade, pool, tmp_path):
    note = tmp_path / "pid"
    before = pool.restarts

    async def scene():
        grading = asyncio.ensure_future(
            pool.grade([call("once", meta=str(note)), *[call("sleep", f"0.{n}1") for n in range(5)]])
        )
        pid = int(await asyncio.to_thread(wait_for_text, note))
        os.kill(pid, signal.SIGKILL)
        return await grading

    assert [j.verdict for j in loop.run(scene())] == [Verdict.VERIFIED] * 6
    assert pool.restarts == before + 1


def test_worker_killed_while_idle_is_replaced_unnoticed(grade):
    pids = {json.loads(j.detail)["pid"] for j in grade(*[call("whoami", str(n)) for n in range(20)])}
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    after = grade(*[call("whoami", str(n)) for n in range(20)])
    assert all(j.verdict is Verdict.VERIFIED for j in after)
    assert pids.isdisjoint(json.loads(j.detail)["pid"] for j in after)


@pytest.mark.parametrize(
    ("name", "argument", "cause"),
    [
        ("die", "SIGSEGV", "killed by SIGSEGV"),
        ("die", "40", "killed by signal 40"),
        ("leave", "3", "ended with exit code 3"),
    ],
)
def test_answer_that_kills_its_process_twice_is_a_crash(grade, name, argument, cause):
    poison, healthy = grade(call(name, argument), SYMBOLIC)
    assert (poison.verdict, poison.reward) == (Verdict.CRASH, 0.0)
    assert poison.detail == f"the verifier process died twice: {cause}, then {cause}"
    assert healthy.verdict is Verdict.VERIFIED


def test_many_crashing_answers_do_not_break_the_pool(loop, monkeypatch):
    monkeypatch.setattr(pool_module, "STORM", 3)  # the pool gives up after four losses

    async def scene():
        pool = VerifierPool(workers=1, timeout=2.0, memory_mb=1024)
        try:
            return await pool.grade([call("die", "SIGSEGV"), call("die", "SIGABRT"), SYMBOLIC]), pool.fault
        finally:
            await pool.close()

    judged, fault = loop.run(scene())
    assert [j.verdict for j in judged] == [Verdict.CRASH, Verdict.CRASH, Verdict.VERIFIED] and fault is None


def test_verifier_whose_import_kills_workers_breaks_the_pool(loop, monkeypatch):
    monkeypatch.setattr(pool_module, "STORM", 3)

    async def scene():
        pool = VerifierPool(workers=1, timeout=2.0, memory_mb=1024)
        try:
            await pool.grade([Answer(response=str(n), gold="1", verifier="verifier_deadly:f") for n in range(2)])
        finally:
            await pool.close()

    with pytest.raises(PoolBroken, match="the last cause: ended with exit code 7"):
        loop.run(scene())


def test_memory_over_the_limit_is_a_crash_and_replaces_worker(grade, pool):
    before = pool.restarts
    hoard, healthy = grade(call("hoard", "2000"), SYMBOLIC)
    assert (hoard.verdict, hoard.detail) == (Verdict.CRASH, "memory limit reached")
    assert healthy.verdict is Verdict.VERIFIED
    assert pool.restarts == before + 1


def test_wrong_verdict_of_a_process_out_of_memory_is_rejected(grade):
    full, half = grade(call("swallow_memory", "0.99"), call("swallow_memory", "0.3"))
    assert (full.verdict, full.detail) == (Verdict.CRASH, "memory limit reached")
    assert half.verdict is Verdict.WRONG


def test_grown_process_is_replaced_before_the_next_item(grade):
    [kept] = grade(call("keep", "600"))
    assert kept.verdict is Verdict.VERIFIED
    later = grade(*[call("whoami", str(n)) for n in range(10)])
    assert int(kept.detail) not in {json.loads(j.detail)["pid"] for j in later}


def test_small_call_does_not_wait_for_a_large_call(loop):
    async def scene():
        pool = VerifierPool(workers=1, timeout=5.0, memory_mb=1024)
        try:
            await pool.grade([SYMBOLIC])
            large = asyncio.ensure_future(pool.grade([call("sleep", f"0.05{n:02}") for n in range(40)]))
            await asyncio.sleep(0.1)
            assert 30 < pool.waiting < 40
            await pool.grade([SYMBOLIC])
            waiting = pool.waiting
            await large
            return waiting, pool.waiting
        finally:
            await pool.close()

    waiting, at_end = loop.run(scene())
    assert waiting > 30 and at_end == 0


def test_cancelled_call_leaves_the_queue(loop, pool, tmp_path):
    log = tmp_path / "calls"

    async def scene():
        grading = asyncio.ensure_future(pool.grade([call("append", str(n), str(log)) for n in range(2000)]))
        while not log.exists():
            await asyncio.sleep(0.001)
        grading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await grading
        return await pool.grade([SYMBOLIC])

    assert loop.run(scene())[0].verdict is Verdict.VERIFIED
    assert len(log.read_text().split()) < 2000


@pytest.mark.parametrize(
    ("verifier", "reason"),
    [
        ("maths", "verifier 'maths' is unknown"),
        ("numeric:-1", "tolerance must be a number"),
        ("no_such_module:f", "No module named"),
        ("verifier_functions:nothing", "has no attribute 'nothing'"),
        ("verifier_functions:score", "is not a function"),
        ("verifier_broken:f", "RuntimeError: no licence found"),
    ],
)
def test_pool_keeps_working_after_an_unusable_verifier(grade, verifier, reason):
    with pytest.raises(BadInput, match=reason):
        grade(Answer(response="1", gold="1", verifier=verifier), SYMBOLIC)
    assert grade(SYMBOLIC)[0].verdict is Verdict.VERIFIED


def test_processes_that_cannot_start_raise_with_the_cause(loop, monkeypatch):
    monkeypatch.setattr(pool_module, "BACKOFF", 0.001)

    async def scene():
        pool = VerifierPool(workers=1, timeout=1.0, memory_mb=100)  # sympy needs more memory than this
        try:
            with pytest.raises(PoolBroken) as first:
                await pool.grade([SYMBOLIC])
            with pytest.raises(PoolBroken):  # later calls fail at once
                await asyncio.wait_for(pool.grade([SYMBOLIC]), 0.1)
            return str(first.value), pool.fault
        finally:
            await pool.close()

    text, fault = loop.run(scene())
    assert text.startswith(f"{pool_module.STORM} verifier processes in a row were lost; the last cause: ")
    assert fault == text


def test_restarts_in_a_row_wait_longer_each_time(loop, monkeypatch):
    starts: list[float] = []

    async def start(timeout, memory_mb):
        starts.append(time.monotonic())
        raise process.WorkerLost("no")

    monkeypatch.setattr(process.WorkerProcess, "start", start)
    monkeypatch.setattr(pool_module, "STORM", 6)

    async def scene():
        pool = VerifierPool(workers=1, timeout=1.0, memory_mb=1024)
        with pytest.raises(PoolBroken, match="6 verifier processes in a row were lost; the last cause: no"):
            await pool.grade([SYMBOLIC])
        await pool.close()

    loop.run(scene())
    gaps = [b - a for a, b in itertools.pairwise(starts[2:])]
    assert all(later > 1.5 * earlier for earlier, later in itertools.pairwise(gaps)), gaps


_DRIVER = """
import asyncio, sys
from treeadv.rewards.judgement import Answer
from treeadv.rewards.sandbox.pool import VerifierPool
sys.path.insert(0, {here!r})
asyncio.run(VerifierPool(1, 300.0, 1024).grade([
    Answer(response="", gold="1", verifier="verifier_functions:deaf", meta={meta!r})
]))
"""


def test_workers_die_with_their_parent_during_an_item(tmp_path):
    note = tmp_path / "pid"
    code = _DRIVER.format(here=str(Path(__file__).parent), meta=json.dumps({"meta": str(note)}))
    driver = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    try:
        pid = int(wait_for_text(note))
    finally:
        driver.kill()
        driver.wait()
    give_up = time.monotonic() + 2
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1]:
        assert time.monotonic() < give_up, "the worker outlived its parent"
        time.sleep(0.02)


def test_close_leaves_no_process_and_fails_what_is_in_flight(loop, tmp_path):
    note = tmp_path / "pid"

    async def scene():
        pool = VerifierPool(workers=2, timeout=60.0, memory_mb=1024)
        grading = asyncio.ensure_future(pool.grade([call("once", meta=str(note))]))
        pid = int(await asyncio.to_thread(wait_for_text, note))
        await pool.close()
        with pytest.raises(PoolBroken, match="closed"):
            await grading
        return pid

    assert not Path(f"/proc/{loop.run(scene())}").exists()


def test_close_right_after_a_start_leaves_no_process(loop, monkeypatch):
    receive = asyncio.StreamReader.feed_data
    closing: list[asyncio.Task[None]] = []
    started: list[int] = []
    init = process.WorkerProcess.__init__

    def note(self, started_process, *streams):
        started.append(started_process.pid)
        init(self, started_process, *streams)

    async def scene():
        pool = VerifierPool(workers=1, timeout=1.0, memory_mb=1024)

        def close_at_once(self, data):
            receive(self, data)
            if not closing:
                closing.append(asyncio.create_task(pool.close()))

        monkeypatch.setattr(asyncio.StreamReader, "feed_data", close_at_once)
        monkeypatch.setattr(process.WorkerProcess, "__init__", note)
        with pytest.raises(PoolBroken, match="closed"):
            await pool.grade([SYMBOLIC])
        async with asyncio.timeout(10):
            await closing[0]

    loop.run(scene())
    assert started and not any(Path(f"/proc/{pid}").exists() for pid in started)
