"""Tests that scores count the verdicts, and that the best step and the early end follow from the scores."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.strategies import build
from treeadv.config import Config, parse
from treeadv.errors import BadInput
from treeadv.evaluation.history import best, early_end, is_due, is_durable
from treeadv.evaluation.scores import result_of, score
from treeadv.evaluation.sets import independent, read_sets, shared_problems, tickets
from treeadv.forest import Finish, Forest, Verdict
from treeadv.task_config import TaskConfig

TASK = TaskConfig(source="unused.jsonl")


def graded(verdicts: list[Verdict], finish: list[Finish]) -> Forest:
    n = len(verdicts)
    forest = build([-1] * n, list(range(2, n + 2)), rewards=[float(v == Verdict.VERIFIED) for v in verdicts])
    return replace(forest, verdict=np.array(verdicts, np.int8), finish=np.array(finish, np.int8))


V, W, T = Verdict.VERIFIED, Verdict.WRONG, Verdict.TIMEOUT
S, L = Finish.STOP, Finish.LENGTH


def test_only_verified_answers_count_as_correct() -> None:
    results = [result_of(graded([V, V, W, T], [S, L, S, S])), result_of(graded([W] * 4, [L, S, S, S]))]
    found = score({"one": results}, 4).sets["one"]
    assert (found.problems, found.samples, found.avg.value) == (2, 4, 0.25)
    assert {k: e.value for k, e in found.passes.items()} == {1: 0.25, 2: pytest.approx((1 - 1 / 6) / 2), 4: 0.5}
    assert found.verdicts == {"wrong": 5, "verified": 2, "timeout": 1}
    assert (found.tokens, found.tokens_mean, found.cut) == (28, 3.5, 0.25)
    assert (found.completed, found.completed_correct) == (0.75, pytest.approx(1 / 6))


def test_answer_that_the_engine_lost_is_a_failure() -> None:
    found = score({"one": [result_of(graded([V, V], [S, S]))]}, 4).sets["one"]
    assert found.avg.value == 0.5 and found.verdicts == {"verified": 2, "aborted": 2}


def test_set_without_an_ended_answer_has_no_share_of_those() -> None:
    assert score({"one": [result_of(graded([V, W], [L, L]))]}, 2).sets["one"].completed_correct is None


def test_evaluation_draws_samples_that_share_nothing() -> None:
    config = parse({"task": {"source": "x.jsonl"}, "sampling": {"leaves": 16, "trees": 4, "temperature": 0.5}}, "test")
    sampling = independent(config, 5).sampling
    assert (sampling.rule, sampling.leaves, sampling.roots, sampling.temperature) == ("none", 5, 5, 0.5)


# ---- sets ----------------------------------------------------------------------------------------
def write(file: Path, count: int) -> Path:
    file.write_text("".join(f'{{"problem": "{file.stem} {i}", "answer": "{i}"}}\n' for i in range(count)))
    return file


def test_folder_holds_a_set_for_each_file(tmp_path: Path) -> None:
    write(tmp_path / "b.jsonl", 3), write(tmp_path / "a.jsonl", 2), (tmp_path / "README.md").touch()
    found = read_sets(tmp_path, TASK)
    assert [(s.name, len(s.problems), s.places) for s in found] == [("a", 2, (0, 1)), ("b", 3, (0, 1, 2))]
    assert [s.places for s in read_sets(tmp_path, TASK, limit=2)] == [(0, 1), (0, 1)]


def test_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    os.rename(write(tmp_path / "a.jsonl", 2), os.fsencode(tmp_path) + b"/\xff.jsonl")
    with pytest.raises(BadInput, match=r"not UTF-8 text.*rename the file"):
        read_sets(tmp_path, TASK)


def test_subset_and_seeds_are_the_same_in_every_evaluation(tmp_path: Path) -> None:
    whole, again = (read_sets(write(tmp_path / "a.jsonl", 50), TASK, subset=n)[0] for n in (None, 10))
    assert again.places == read_sets(tmp_path / "a.jsonl", TASK, subset=10)[0].places
    assert len(set(again.places)) == 10 and again.places != tuple(range(10))
    seeds = {t.draw: t.seed for t in tickets(whole, 0)}
    assert all(seeds[t.draw] == t.seed for t in tickets(again, 0))
    assert len(set(seeds.values())) == 50 and {t.seed for t in tickets(whole, 1)}.isdisjoint(seeds.values())


def test_folder_without_problems_or_with_equal_names_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such file or folder"):
        read_sets(tmp_path / "nowhere", TASK)
    with pytest.raises(BadInput, match=r"holds no \.jsonl or \.parquet or \.csv"):
        read_sets(tmp_path, TASK)
    write(tmp_path / "a.jsonl", 1), (tmp_path / "a.parquet").touch()
    with pytest.raises(BadInput, match="two files have the name a"):
        read_sets(tmp_path, TASK)


def test_held_out_problems_that_are_trained_on_are_counted(tmp_path: Path) -> None:
    sets = read_sets(write(tmp_path / "a.jsonl", 5), TASK)
    assert shared_problems(sets, sets[0].problems[:2]) == 2 and shared_problems(sets, []) == 0


# ---- best step and early end ---------------------------------------------------------------------
def config(**run: Any) -> Config:
    run = {"steps": 25, "checkpoint_every": 10} | run
    return parse({"task": {"source": "x.jsonl"}, "eval": {"every": 4, "data": "held.jsonl"}, "run": run}, "test")


def records(*values: float) -> list[dict[str, Any]]:
    return [{"step": 4 * i, "avg": {"value": v}} for i, v in enumerate(values)]


def test_first_and_last_step_are_evaluated_and_have_checkpoints() -> None:
    steps = range(26)
    assert [s for s in steps if is_due(config(), s)] == [0, 4, 8, 12, 16, 20, 24, 25]
    assert [s for s in steps if s and is_durable(config(), s)] == [4, 8, 10, 12, 16, 20, 24, 25]


def test_best_is_the_earliest_of_equals() -> None:
    found = best(records(0.1, 0.4, 0.2, 0.4))
    assert found is not None and found["step"] == 4
    assert best([]) is None


def test_run_ends_early_at_its_target_and_without_progress() -> None:
    assert early_end(config(), records(0.1, 0.9)) == ""
    assert early_end(config(stop_at=0.9), records(0.1, 0.8)) == ""
    assert "step 8 reached run.stop_at=0.9" in early_end(config(stop_at=0.9), records(0.1, 0.8, 0.9))
    assert early_end(config(patience=2), records(0.1, 0.3, 0.2)) == ""
    assert "run.patience=2" in early_end(config(patience=2), records(0.1, 0.3, 0.2, 0.3))
    assert early_end(config(stop_at=0.9, patience=2), []) == ""


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"eval": {"every": 4}}, "eval.every=4 needs eval.data"),
        ({"run": {"stop_at": 0.5}}, "run.stop_at=0.5 needs evaluations"),
        ({"run": {"patience": 3}}, "run.patience=3 needs evaluations"),
    ],
)
def test_option_without_its_evaluations_is_refused(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        parse({"task": {"source": "x.jsonl"}} | tree, "test")
