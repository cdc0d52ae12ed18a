"""Tests that a run ends when its verifier fails on most answers."""

from __future__ import annotations

import pytest

from treeadv.errors import RunFailed
from treeadv.forest import Verdict
from treeadv.rewards.watch import FIRST, WINDOW, VerifierWatch

CRASH, TIMEOUT, WRONG, ABORTED = Verdict.CRASH, Verdict.TIMEOUT, Verdict.WRONG, Verdict.ABORTED


def test_verifier_that_fails_from_the_start_ends_the_run() -> None:
    watch = VerifierWatch()
    watch.add([CRASH] * (FIRST - 1), "ValueError: x (mine.py:3)")
    with pytest.raises(RunFailed, match=rf"all of the first {FIRST} answers.*mine.py:3") as e:
        watch.add([TIMEOUT], "ValueError: x (mine.py:3)")
    assert e.value.exit_code == 1


def test_one_judged_answer_prevents_the_early_end() -> None:
    watch = VerifierWatch()
    watch.add([WRONG] + [CRASH] * (WINDOW // 2), "x")


def test_more_than_half_of_the_window_failing_ends_the_run() -> None:
    watch = VerifierWatch()
    watch.add([WRONG] * WINDOW, "")
    watch.add([CRASH] * (WINDOW // 2), "x")
    with pytest.raises(RunFailed, match=f"{WINDOW // 2 + 1} of the last {WINDOW} answers"):
        watch.add([CRASH], "x")


def test_old_failures_leave_the_window() -> None:
    watch = VerifierWatch()
    for _ in range(20):
        watch.add([WRONG] * (WINDOW // 2) + [CRASH] * (WINDOW // 2), "x")


def test_branches_that_the_engine_lost_do_not_count() -> None:
    watch = VerifierWatch()
    watch.add([ABORTED] * 1000, "")
    watch.add([CRASH] * (FIRST - 1), "x")
