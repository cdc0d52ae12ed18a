"""Tests that the verifier finds every gold answer of the benchmarks equal to itself, and reads most as formulas."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from treeadv.forest import Verdict
from treeadv.rewards.judgement import Answer, Grade
from treeadv.rewards.parsing.grammar import read
from treeadv.rewards.parsing.guards import refusal
from treeadv.rewards.parsing.terms import Term
from treeadv.rewards.parsing.tokens import Unreadable
from treeadv.rewards.verifiers.registry import screen

# Gold answers that do not equal themselves in a box, and the reasons. docs/rewards.md repeats this table.
EXCEPTIONS = {
    "omni_math_rule-183": "a brace is never closed in the data",
    "omni_math_rule-682": "a brace is never closed in the data",
    "omni_math_rule-710": "a brace is never closed in the data",
    "omni_math_rule-1469": "a brace is never closed in the data",
}
# Gold answers that a limit refuses. An equal answer in another form is refused; in the same form it is verified.
REFUSED = {
    "omni_math_rule-862": "control or surrogate characters",  # the data has a form feed in place of the \\f of \\frac
}


def golds() -> dict[str, str]:
    """Return id -> gold answer, with one id for each different answer."""
    if "TREEADV_DATA" not in os.environ:
        pytest.skip("TREEADV_DATA does not name a folder with benchmarks/*.jsonl")
    files = sorted(Path(os.environ["TREEADV_DATA"], "benchmarks").glob("*.jsonl"))
    assert files, "no benchmark files under TREEADV_DATA"
    first: dict[str, str] = {}
    for record in (json.loads(line) for f in files for line in f.read_text().splitlines()):
        first.setdefault(record["answer"], record["id"])
    return {name: answer for answer, name in first.items()}


def test_every_gold_answer_equals_itself_boxed():
    failed = {}
    for name, gold in golds().items():
        grade = screen(Answer(response=f"With 7 cases left, \\boxed{{{gold}}}.", gold=gold, verifier="math"))
        if not (isinstance(grade, Grade) and grade.verdict is Verdict.VERIFIED):
            failed[name] = grade
    assert failed.keys() == EXCEPTIONS.keys()


def test_guards_refuse_only_the_gold_answers_listed():
    assert {n: reason for n, gold in golds().items() if (reason := refusal(gold))} == REFUSED


def test_nine_of_ten_gold_answers_are_read():
    """The other gold answers are prose, as in college_math, or mathematics outside the grammar."""
    known = golds()
    assert sum(_read(gold) is not None for gold in known.values()) >= 0.9 * len(known)


def _read(gold: str) -> Term | None:
    try:
        return read(gold)
    except Unreadable:
        return None
