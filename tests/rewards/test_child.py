"""Tests answers that a scorer of reasoning-gym evaluates. Their effects must end with their process and change no other
verdict."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import reasoning_gym

from treeadv.forest import Verdict
from treeadv.rewards.judgement import Answer
from treeadv.rewards.sandbox.pool import VerifierPool

WRONG_ANSWER = Answer(response=r"\boxed{x^3}", gold="(x+1)^2", verifier="math")  # this answer needs a worker
EVALUATE = (
    "countdown", "puzzle24", "polynomial_multiplication", "simple_integration", "intermediate_integration", "n_queens",
    "string_insertion", "spiral_matrix", "binary_matrix",
)  # fmt: skip


def attack(code: str, family: str = "countdown") -> Answer:
    entry = reasoning_gym.create_dataset(family, size=1, seed=1)[0]
    meta = json.dumps({"dataset": family, "entry": entry}, default=str)
    return Answer(
        response=f"<answer>exec({f'import attack; attack.{code}'!r})</answer>",
        gold="",
        verifier="reasoning-gym",
        meta=meta,
    )


@pytest.fixture
def one_worker(loop):
    made = VerifierPool(workers=1, timeout=2.0, memory_mb=1024)
    yield made
    loop.run(made.close())


def test_answer_that_runs_code_cannot_change_the_worker(loop, one_worker, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    attacked, after = loop.run(one_worker.grade([attack(f"everything({str(tmp_path)!r})"), WRONG_ANSWER]))
    assert (attacked.verdict, after.verdict, after.detail) == (Verdict.WRONG, Verdict.WRONG, "not equal")
    *none, patched = sorted(p.name for p in tmp_path.iterdir() if p.is_dir() and not p.name.startswith("process"))
    assert patched == "patched" and not none  # the answer is executed, and changes only its own memory
    assert (tmp_path / "file").stat().st_size == 0
    assert one_worker.restarts == 0
    if os.getuid() == 0:  # users other than root may start no process
        [started] = [int(p.name.split()[1]) for p in tmp_path.glob("process *")]
        _wait_until_ended(Path(f"/proc/{started}/stat"))


def _wait_until_ended(state: Path, seconds: float = 10) -> None:
    """Wait until a killed process has ended, which takes the kernel some time."""
    limit = time.monotonic() + seconds
    while state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < limit, state.read_text()
        time.sleep(0.05)


@pytest.mark.parametrize("family", EVALUATE)
def test_every_scorer_that_evaluates_does_so_in_a_child(loop, pool, tmp_path, family):
    """If a release of reasoning-gym no longer evaluates answers, the first assertion fails, and the family can be
    removed from the list."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        loop.run(pool.grade([attack(f"touch({str(tmp_path)!r})", family)]))
    assert (tmp_path / "evaluated").is_dir()


UNKNOWN = "is unknown: use verified, wrong, unparsed, timeout, crash, refused"


def claimed(**changes: object) -> str:
    """Return code that writes a grade in place of the child's grade."""
    return f"claim({json.dumps({'verdict': 'WRONG', 'reward': 1.0, 'detail': '', 'parts': {}} | changes)!r})"


@pytest.mark.parametrize(
    ("code", "verdict", "detail"),
    [
        ("die()", Verdict.CRASH, "the verifier process died twice: killed by SIGSEGV, then killed by SIGSEGV"),
        ("hang()", Verdict.TIMEOUT, "over 1.6 s"),
        (claimed(reward=1e9), Verdict.CRASH, "no result: ValueError: the reward 1e+09 is larger than 1"),
        (claimed(verdict="UNGRADED"), Verdict.CRASH, f"no result: ValueError: the verdict 'UNGRADED' {UNKNOWN}"),
        (claimed(reward="nan"), Verdict.CRASH, "no result: ValueError: the reward is 'nan', not a finite number"),
        ("claim('[1, 1]')", Verdict.CRASH, "no result: ValueError: the reply is not a grade"),
        ("claim('owned')", Verdict.CRASH, "no result: JSONDecodeError: Expecting value: line 1 column 1 (char 0)"),
        # the scorer treats the MemoryError as a wrong answer, and no memory is allocated
        ("swell()", Verdict.WRONG, ""),
    ],
)  # fmt: skip
def test_faulty_child_fails_only_its_own_answer(loop, one_worker, code, verdict, detail):
    judged, after = loop.run(one_worker.grade([attack(code), WRONG_ANSWER]))
    assert (judged.verdict, judged.detail) == (verdict, detail)
    assert (after.verdict, one_worker.restarts) == (Verdict.WRONG, 0)
