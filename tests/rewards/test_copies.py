"""Tests that a verifier that accepts a copy of the problem is found before a run starts."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treeadv.checks import check_copies, verifiers
from treeadv.config import load
from treeadv.data.tasks import problem_source
from treeadv.rewards.copies import MOST_COPIES, copies

SUMS = [(f"What is {a} + {a + 3}?", 2 * a + 3) for a in range(2, 22)]
TERMS = [(f"Simplify ${a}x + {a}x$.", f"{2 * a}x") for a in range(2, 22)]
WORDS = [(f"Ann has {a} apples and buys as many again. How many has she?", 2 * a) for a in range(2, 22)]


def warnings(lines: list[tuple[str, object]], verifier: str, folder: Path, caplog: pytest.LogCaptureFixture) -> str:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps({"problem": p, "answer": a}) + "\n" for p, a in lines))
    config = load(Path("laptop"), [f"task.source={path}", f"task.verifier={verifier}"])
    with caplog.at_level(logging.WARNING), verifiers(config) as judge:
        check_copies(problem_source(config.task, 0).examples(8), config, judge)
    return caplog.text


@pytest.mark.parametrize(("lines", "copy"), [(SUMS, "2 + 5"), (TERMS, "2x + 2x")])
def test_verifier_that_accepts_copies_is_named(lines, copy: str, tmp_path: Path, caplog) -> None:
    text = warnings(lines, "math", tmp_path, caplog)
    assert "for 20 of 20 problems the verifier accepts a copy" in text and copy in text


@pytest.mark.parametrize(
    ("lines", "verifier"), [(SUMS, "literal"), (SUMS, "exact"), (TERMS, "exact"), (WORDS, "math"), (WORDS, "literal")]
)
def test_verifier_that_refuses_copies_gives_no_warning(lines, verifier: str, tmp_path: Path, caplog) -> None:
    assert warnings(lines, verifier, tmp_path, caplog) == ""


def test_few_answers_in_their_problem_are_chance(tmp_path: Path, caplog) -> None:
    assert warnings([*WORDS, ("What is 2 + 2?", 4)], "math", tmp_path, caplog) == ""


@pytest.mark.parametrize("recipe", sorted(Path("deploy/recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_no_recipe_rewards_copies(recipe: Path, caplog) -> None:
    config = load(recipe)
    examples = problem_source(config.task, config.run.seed).examples(32)
    with caplog.at_level(logging.WARNING), verifiers(config) as judge:
        check_copies(examples, config, judge)
    assert caplog.text == ""
    math = load(recipe, ["task.verifier=math"])
    with caplog.at_level(logging.WARNING), verifiers(math) as judge:
        check_copies(problem_source(math.task, math.run.seed).examples(32), math, judge)
    assert "accepts a copy" in caplog.text


@given(st.text(alphabet="0123456789 +-*/^().,=$xy?\\{}", max_size=60))
def test_copies_are_few_and_part_of_the_problem(problem: str) -> None:
    found = copies(problem)
    assert found[0] == problem and len(found) <= MOST_COPIES and len(set(found)) == len(found)
