"""Tests that gold answers that no response can match are found before a run starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.test_tasks import read_problems
from treeadv.errors import BadInput
from treeadv.evaluation.answer_file import grade_file
from treeadv.rewards.golds import Gold, check_golds
from treeadv.rewards.sandbox.pool import judging


def gold(text: str, verifier: str = "math", place: str = "d.jsonl:1") -> Gold:
    return Gold(place=place, text=text, verifier=verifier, meta="")


def check(*golds: Gold):
    with judging(workers=1, timeout=5.0, memory_mb=1024) as judge:
        return check_golds(golds, judge)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("NaN", "answer is nan"), ("Infinity", "answer is inf"), ("-Infinity", "answer is -inf"),
        ('"nan"', "is 'nan', a missing value"), ('" "', "answer is blank"), (r'"\u00a0\n"', "answer is blank"),
        (r'"\frac{1}{2}"', r"control character '\\x0c'"), (r'"a\u0000b"', r"control character '\\x00'"),
        (r'"\ud800"', "unpaired surrogate"), ("true", "must be text or a number"), ("[1]", "must be text"),
        ("9" * 4301, "not JSON|too long"),
    ],
)  # fmt: skip
def test_unusable_answer_is_refused_with_file_and_line(tmp_path: Path, answer: str, reason: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(f'{{"problem": "p", "answer": "1"}}\n{{"problem": "p", "response": "r", "answer": {answer}}}\n')
    with pytest.raises(BadInput, match=rf"data.jsonl:2: .*({reason})"):
        read_problems(path)
    path.write_text(f'{{"response": "p", "answer": "1"}}\n{{"response": "r", "answer": {answer}}}\n')
    with pytest.raises(BadInput, match=rf"data.jsonl:2: .*({reason})"):
        grade_file(path, workers=1)


def test_numbers_null_verifier_bom_and_crlf_are_read(tmp_path: Path) -> None:
    lines = [
        {"problem": "p", "response": "The answer is 2.", "answer": 2, "verifier": None},
        {"problem": "p", "response": r"\boxed{2.5}", "answer": 2.5, "verifier": "numeric"},
    ]
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(json.dumps(line).encode() for line in lines) + b"\r\n")
    assert [(p.answer, p.verifier) for p in read_problems(path)] == [("2", "math"), ("2.5", "numeric")]
    assert grade_file(path, workers=1).verdicts == {"verified": 2}


def test_data_line_may_not_name_code_or_a_host(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    for name in ("os:system", "http://example.org/grade", 'sum:[["os:system", 1]]'):
        path.write_text(json.dumps({"problem": "p", "answer": "1", "verifier": name}) + "\n")
        with pytest.raises(BadInput, match=r"data.jsonl:1: verifier .* name the verifier in the configuration"):
            read_problems(path)
    path.write_text(json.dumps({"problem": "p", "answer": "1", "verifier": "tests.parity:has_even_sum"}) + "\n")
    assert read_problems(path, "tests.parity:has_even_sum")[0].verifier == "tests.parity:has_even_sum"


def test_golds_that_cannot_be_met_are_counted_with_examples() -> None:
    unmet = check(gold("1"), gold("ABCD", "choice", "d.jsonl:2"), gold("two", "numeric", "d.jsonl:3"))
    assert unmet is not None and (unmet.count, unmet.total) == (2, 3)
    assert "no response can match 2 of 3 gold answers: d.jsonl:2 'ABCD'" in str(unmet)
    assert check(gold("1"), gold(r"\frac{1}{2}")) is None
    assert (unmet := check(gold("1"), gold(r"\frac{1}{2"))) is not None and unmet.count == 1


def test_verifier_that_verifies_no_gold_is_refused() -> None:
    with pytest.raises(BadInput, match=r"verifies none of the 2 gold answers: d.jsonl:1 'one'"):
        check(gold("one", "numeric"), gold("two", "numeric", "d.jsonl:2"))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no_such_module:f", "No module named 'no_such_module'"),
        ("verifier_functions:no_such_function", "no attribute 'no_such_function'"),
        ("verifier_functions:raising", r"ZeroDivisionError.*verifier_functions.py:\d+"),
        ('sum:[["math", 1.0], ["verifier_functions:raising", 0.5]]', "fails on the gold answer at d.jsonl:1: ZeroDiv"),
        ("verifier_functions:needs_a_column", "the data line has no column difficulty"),
        ("verifier_functions:infinite", "not a finite number"),
        ("verifier_functions:texts", "not a finite number"),
    ],
)
def test_unusable_function_is_refused_with_the_cause(name: str, reason: str) -> None:
    with pytest.raises(BadInput, match=reason):
        check(gold("1", name))
