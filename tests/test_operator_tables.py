"""Tests the task operator-tables with an independent evaluation of the tables, and the error rate of the warm-up
text."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from treeadv.data.operator_tables import Tables, solve
from treeadv.data.problems import Problem
from treeadv.data.tasks import problem_source
from treeadv.errors import BadInput
from treeadv.forest import Verdict
from treeadv.local.warmup import PAD, VOCABULARY, Warmup, warm_model, warmup_batch
from treeadv.rewards.judgement import Answer
from treeadv.rewards.verifiers.registry import screen
from treeadv.task_config import TablesConfig, TaskConfig


def task(**tables: object) -> TaskConfig:
    return TaskConfig.model_validate({"source": "operator-tables", "tables": tables})


@given(seed=st.integers(0, 9), draw=st.integers(0, 999), operations=st.integers(1, 9))
def test_gold_is_the_digit_at_the_end_of_the_chain(seed: int, draw: int, operations: int) -> None:
    problem = problem_source(task(operations=operations, seed=seed), 3)[draw]
    assert re.fullmatch(rf"\d([abc]\d){{{operations}}}\|", problem.problem)
    tables, value = Tables.of(TablesConfig(operations=operations, seed=seed)), int(problem.problem[0])
    for operator, operand in re.findall(r"([abc])(\d)", problem.problem):
        value = int(tables.right["abc".index(operator)][value][int(operand)])
    assert problem.answer == str(value)
    solution = solve(problem.problem, tables)
    assert solution.count("=") == operations
    assert screen(Answer(response=solution, gold=problem.answer, verifier=problem.verifier)).verdict is Verdict.VERIFIED


@pytest.mark.parametrize("operators", [1, 2, 3])
def test_problems_use_the_first_operators_only(operators: int) -> None:
    source = problem_source(task(operators=operators), 3)
    assert {letter for i in range(40) for letter in source[i].problem if letter.isalpha()} == set("abc"[:operators])


def test_draws_of_the_published_study_stay_the_same() -> None:
    test_problems = problem_source(TaskConfig.model_validate({"source": "operator-tables"}), 1_000_003)
    assert [test_problems[i].problem for i in range(2)] == ["0b8a8a6a0c0|", "2a7a9b7b9b8|"]


def test_problem_depends_only_on_seed_and_draw() -> None:
    forward = [problem_source(task(), 3)[i] for i in range(20)]
    source = problem_source(task(), 3)
    assert [source[i] for i in reversed(range(20))] == forward[::-1]
    assert [problem_source(task(), 4)[i].problem for i in range(20)] != [p.problem for p in forward]


@pytest.mark.parametrize("hard", [0.0, 0.3, 1.0])
def test_tables_have_the_share_of_hard_entries(hard: float) -> None:
    tables = Tables.of(TablesConfig(hard=hard))
    assert tables.hard.mean() == pytest.approx(hard)
    assert (tables.right != tables.wrong).all() and set(tables.right.flat) | set(tables.wrong.flat) == set(range(10))


@pytest.mark.parametrize(
    ("response", "verdict"),
    [
        ("7a3=2;2c1=5", Verdict.VERIFIED),
        ("5", Verdict.VERIFIED),
        ("7a3=5;5c1=2", Verdict.WRONG),
        ("7a3=2;2c1=", Verdict.UNPARSED),
        ("", Verdict.UNPARSED),
        ("7a3=2;2c1=\u0665", Verdict.UNPARSED),
    ],
)
def test_last_digit_alone_decides_the_verdict(response: str, verdict: Verdict) -> None:
    assert screen(Answer(response=response, gold="5", verifier="last-digit")).verdict is verdict


def test_configured_verifier_replaces_last_digit() -> None:
    assert task().grader == "last-digit"
    assert TaskConfig(source="operator-tables", verifier="exact").grader == "exact"
    with pytest.raises(ValueError, match="hard"):
        task(hard=1.5)


def test_warmup_text_errs_at_hard_entries_as_often_as_asked() -> None:
    warmup = Warmup(batch=4000, tables=TablesConfig(operations=4))
    tables = Tables.of(warmup.tables)
    tokens, targets = warmup_batch(warmup, tables, np.random.default_rng(0))
    texts = ["".join(VOCABULARY[t] for t in row) for row in tokens]
    right: dict[bool, list[bool]] = {False: [], True: []}
    for text in texts:
        prompt, _, answer = text.partition("|")
        steps = re.findall(r"(\d)([abc])(\d)=(\d)[;$]", answer)
        assert "".join(operator + operand for _, operator, operand, _ in steps) == prompt[1:] and answer[-1] == "$"
        assert [s[0] for s in steps] == [prompt[0], *(s[3] for s in steps[:-1])]
        for value, operator, operand, result in steps:
            at = ("abc".index(operator), int(value), int(operand))
            right[bool(tables.hard[at])].append(int(result) == tables.right[at])
            assert int(result) in (tables.right[at], tables.wrong[at])
    assert np.mean(right[False]) == pytest.approx(0.95, abs=0.01)
    assert np.mean(right[True]) == pytest.approx(0.3, abs=0.03)
    assert (targets[:, :10] == -100).all() and (targets[:, 10:] == tokens[:, 10:]).all()


def test_warm_model_is_made_once_and_ends_its_answers(tmp_path) -> None:
    from treeadv.data.model_files import stop_ids
    from treeadv.data.prompts import Prompter

    warmup, steps = Warmup(steps=2, batch=4, width=16, layers=1), []
    folder = warm_model(warmup, tmp_path, lambda step, _: steps.append(step))
    assert warm_model(warmup, tmp_path, lambda step, _: steps.append(step)) == folder and steps == [1, 2]
    assert [p.name for p in tmp_path.iterdir()] == [warmup.name] != [Warmup(seed=1).name]
    prompter = Prompter(folder)
    ids = prompter.encode(Problem(id="", problem="7a3c1|", answer="", verifier="math", meta=""))
    assert [VOCABULARY[i] for i in ids] == list("7a3c1|") and stop_ids(folder) == {0}
    assert prompter.decode(np.array([*ids, 0])) == "7a3c1|" and PAD not in prompter.decode(ids)


def test_negative_draw_is_refused() -> None:
    with pytest.raises(IndexError, match="-1"):
        problem_source(task(), 0)[-1]


def test_unknown_source_names_operator_tables() -> None:
    with pytest.raises(BadInput, match="operator-tables"):
        problem_source(TaskConfig(source="tables"), 0)
