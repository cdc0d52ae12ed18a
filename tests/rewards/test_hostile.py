"""Tests the hostile corpus: every answer ends within its limits with a reason, and other answers are not affected."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.rewards import hostile
from treeadv.forest import Verdict
from treeadv.rewards.judgement import Answer, Task
from treeadv.rewards.parsing.extract import final_answer
from treeadv.rewards.sandbox.pool import VerifierPool
from treeadv.rewards.verifiers import mathematics
from treeadv.rewards.verifiers.registry import screen

TIMEOUT = 1.5


def healthy(n: int) -> Answer:
    """Return a right answer that needs a worker."""
    return Answer(response=rf"\boxed{{\operatorname{{lcm}}(x, {2 * n + 1}y)}}", gold=f"{2 * n + 1}xy", verifier="math")


def run_corpus(loop: asyncio.Runner):
    async def scene():
        pool = VerifierPool(workers=2, timeout=TIMEOUT, memory_mb=1024)
        try:
            mixed = [
                a
                for n, c in enumerate(hostile.CORPUS)
                for a in (Answer(response=c[1], gold=c[2], verifier="math"), healthy(n))
            ]
            judged = await pool.grade(mixed)
            began = time.monotonic()
            [after] = await pool.grade([healthy(1000)])
            return judged[::2], [*judged[1::2], after], time.monotonic() - began
        finally:
            await pool.close()

    return loop.run(scene())


def test_hostile_answer_gets_the_right_verdict_and_reason(loop):
    judged, others, back = run_corpus(loop)
    got = {name: (j.verdict, j.detail) for (name, *_), j in zip(hostile.CORPUS, judged, strict=True)}
    assert {n: v for n, _, _, allowed in hostile.CORPUS if (v := got[n])[0] not in allowed} == {}
    assert all(j.detail and len(j.detail) <= 300 and j.seconds <= TIMEOUT + 0.3 and j.reward == 0.0 for j in judged)
    assert {j.verdict for j in others} == {Verdict.VERIFIED}
    assert back < 1.0


def test_time_and_memory_limits_hold_without_guards(loop, monkeypatch):
    monkeypatch.setattr(
        mathematics.Mathematics,
        "screen",
        lambda self, a: Task(verifier="math", gold=a.gold, text=final_answer(a.response) or ""),
    )
    judged, others, back = run_corpus(loop)
    assert sum(j.verdict is Verdict.TIMEOUT for j in judged) >= 10  # the corpus makes sympy hang
    assert [(j.detail, j.seconds) for j in judged if not j.detail or j.seconds > TIMEOUT + 0.3] == []
    assert {j.verdict for j in others} == {Verdict.VERIFIED}
    assert back < 1.0


def test_no_answer_blocks_the_calling_process(grade):
    """The screen runs in the event loop of the caller, so an answer of a megabyte must not block it."""
    slow = {}
    for name, response, gold, _ in hostile.CORPUS:
        began = time.process_time()
        screen(Answer(response=response, gold=gold, verifier="math"))
        if (took := time.process_time() - began) > 0.1:
            slow[name] = took
    assert slow == {}


@pytest.mark.parametrize(("name", "response", "gold"), hostile.RIGHT, ids=[r[0] for r in hostile.RIGHT])
def test_right_answers_in_unusual_forms_are_verified(grade, name, response, gold):
    [j] = grade(Answer(response=response, gold=gold, verifier="math"))
    assert (j.verdict, j.reward) == (Verdict.VERIFIED, 1.0), j.detail
