"""Tests that `treeadv grade` adds verdicts to a JSONL file. For a bad line, it must name the line and write nothing."""

from __future__ import annotations

import json

import pytest

from treeadv.cli.main import main
from treeadv.errors import BadInput
from treeadv.evaluation.answer_file import grade_file


def write(path, lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


def test_every_line_gets_its_verdict_in_order(tmp_path):
    lines = [
        {"problem": "1+1", "answer": "2", "response": "The answer is 2.", "id": "a"},
        {"problem": "expand", "answer": "(x+1)^2", "response": r"\boxed{x^2+2x+1}"},
        "",
        {"problem": "1+1", "answer": "2", "response": "3"},
        {"problem": "pick", "answer": "B", "response": "B", "verifier": "choice"},
        {"problem": "1+1", "answer": "2", "response": "no \u2028idea"},
    ]
    out = tmp_path / "graded.jsonl"
    summary = grade_file(write(tmp_path / "in.jsonl", lines), workers=1, out=out)
    graded = [json.loads(line) for line in out.read_text().split("\n") if line]
    assert [g["verdict"] for g in graded] == ["verified", "verified", "wrong", "verified", "unparsed"]
    assert graded[0]["id"] == "a" and [g["reward"] for g in graded] == [1.0, 1.0, 0.0, 1.0, 0.0]
    assert (summary.answers, summary.verdicts) == (5, {"verified": 3, "wrong": 1, "unparsed": 1})
    assert summary.reward_mean == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", ":2: not JSON"),
        ("[1]", ":2: the line must be a JSON object"),
        ({"response": "1"}, ":2: the line has no text under 'answer'"),
        ({"answer": "1"}, ":2: the line has no text under 'response'"),
        ({"answer": [1], "response": "1"}, ":2: answer must be"),
        ({"answer": "1", "response": "1", "verifier": "maths"}, ":2: verifier 'maths' is unknown"),
    ],
)
def test_bad_line_is_named_and_nothing_is_written(tmp_path, line, reason):
    source = write(tmp_path / "in.jsonl", [{"answer": "1", "response": "1"}, line])
    out = tmp_path / "out.jsonl"
    with pytest.raises(BadInput, match=f"in.jsonl{reason}"):
        grade_file(source, out=out)
    assert not out.exists()


@pytest.mark.parametrize(
    "line",
    [
        {"question": "3 + 4?", "answer": "3 + 4 = <<3+4=7>>7\n#### 7"},
        {"problem": "3 + 4?", "answer": "7"},
        {"prompt": [{"role": "user", "content": "3 + 4?"}], "reward_model": {"ground_truth": "7"}},
    ],
)
def test_gold_answer_is_found_in_every_form_that_training_reads(tmp_path, line):
    source = write(tmp_path / "in.jsonl", [line | {"response": "The answer is 7."}])
    assert grade_file(source, "literal", workers=1).verdicts == {"verified": 1}


def test_normaliser_of_grade_is_that_of_the_task(tmp_path, capsys):
    source = write(tmp_path / "in.jsonl", [{"answer": r"so \boxed{7}", "response": "The answer is 7."}])
    assert main(["grade", str(source), "--normaliser", "boxed", "--workers", "1"]) == 0
    assert "verified 1" in capsys.readouterr().out
    assert main(["grade", str(source), "--normaliser", "bxed"]) == 2
    assert "bxed" in capsys.readouterr().err


def test_answers_of_which_only_some_are_marked_are_refused(tmp_path):
    lines = [{"answer": a, "response": "7"} for a in ("3 + 4\n#### 7", "3 + 4 = 7")]
    with pytest.raises(BadInput, match=r"in\.jsonl:2: the answer has no ####"):
        grade_file(write(tmp_path / "in.jsonl", lines))


def test_missing_or_empty_file_is_bad_input(tmp_path):
    with pytest.raises(BadInput, match=r"gone.jsonl: no such file"):
        grade_file(tmp_path / "gone.jsonl")
    with pytest.raises(BadInput, match="no line to grade"):
        grade_file(write(tmp_path / "empty.jsonl", ["", ""]))


def test_verifier_failures_are_left_out_of_the_mean(tmp_path):
    lines = [{"answer": a, "response": a, "verifier": v} for a, v in (("1", "math"), ("2", None), ("3", None))]
    summary = grade_file(write(tmp_path / "in.jsonl", lines), "verifier_functions:raising", workers=1)
    assert (summary.verdicts, summary.reward_mean, summary.failures) == ({"verified": 1, "crash": 2}, 1.0, 2)
    assert "verifier_functions.py:" in summary.last_failure


def test_verifier_that_mostly_fails_exits_with_1(tmp_path, capsys):
    source = write(tmp_path / "in.jsonl", [{"answer": "1", "response": "1"}])
    out = tmp_path / "out.jsonl"
    assert main(["grade", str(source), "--verifier", "verifier_functions:raising", "--out", str(out)]) == 1
    shown = capsys.readouterr()
    assert "no answer was judged" in shown.out
    assert "failed on 1 of 1 answers; the last failure: ZeroDivisionError" in shown.err
    assert json.loads(out.read_text())["verdict"] == "crash"
