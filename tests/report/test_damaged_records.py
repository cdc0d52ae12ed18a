"""Tests the commands that show a run on records with values of another type, as a run of any origin may have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.report.runs import make_run, record
from treeadv.cli.main import main

WRONG: tuple[Any, ...] = (None, True, [["x"]], {"a": "x"}, 10**400)
EVALUATION: dict[str, Any] = {
    "step": 2, "version": 2, "seconds": 1.0, "avg": {"value": 0.5, "interval": [0.4, 0.6]},
    "sets": {"a": {"avg": {"value": 0.5, "interval": None}, "samples": 4, "tokens_mean": 9.0, "cut": 0.0}},
}  # fmt: skip


def commands(run: Path) -> list[list[str]]:
    compare = ["compare", str(run), str(run), "--html", str(run / "compare.html")]
    return [["runs", str(run.parent)], compare, ["report", str(run)], ["watch", str(run)]]


def output(run: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the output of all commands. A command shows the run, or refuses it in one line."""
    texts = []
    for command in commands(run):
        code = main(command)
        out, err = capsys.readouterr()
        assert (code == 0 and not err) or (code == 2 and len(err.splitlines()) == 1), (command, code, err)
        texts.append(out + err)
    return " ".join(" ".join(texts).split())


@pytest.mark.parametrize("name", ["step", "elapsed_s", "reward_mean", "staleness_max", "verdicts", "seconds", "ess"])
def test_value_of_another_type_is_named_with_its_line(tmp_path: Path, name: str, capsys) -> None:
    run = make_run(tmp_path, [], [record(1), record(2), record(3)])
    for value in WRONG:
        records = [record(1), record(2) | {name: value}, record(3)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
        assert "line 2 is damaged" in output(run, capsys), value


@pytest.mark.parametrize("name", ["elapsed_s", "reward_mean", "staleness_max", "forests", "seconds"])
def test_record_without_a_field_is_named(tmp_path: Path, name: str, capsys) -> None:
    run = make_run(tmp_path, [], [])
    lines = [json.dumps({key: value for key, value in record(n).items() if key != name}) for n in (1, 2)]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert f"has no {name}" in output(run, capsys)


@pytest.mark.parametrize("name", ["reward_mean", "mismatch_kl", "grad_norm", "answer_tokens"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_number_that_is_not_finite_is_shown(tmp_path: Path, name: str, value: float, capsys) -> None:
    run = make_run(tmp_path, [], [record(1), record(2) | {name: value}])
    assert "damaged" not in output(run, capsys)


@pytest.mark.parametrize(
    "path", ["step", "seconds", "avg", "avg value", "avg interval", "sets", "sets a", "sets a cut"]
)
def test_damaged_evaluation_is_named_with_its_line(tmp_path: Path, path: str, capsys) -> None:
    run = make_run(tmp_path, [], [record(1), record(2)])
    for value in ([["x"]], 10**400):
        evaluation = json.loads(json.dumps(EVALUATION))
        *parents, last = path.split()
        inner = evaluation
        for key in parents:
            inner = inner[key]
        inner[last] = value
        (run / "evaluations.jsonl").write_text(json.dumps(EVALUATION) + "\n" + json.dumps(evaluation) + "\n")
        assert "line 2 is damaged" in output(run, capsys), value


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"steps": 1}', "[" * 100_000])
def test_report_names_a_damaged_summary(tmp_path: Path, text: str) -> None:
    run = make_run(tmp_path, [], [record(1)])
    (run / "summary.json").write_text(text)
    assert main(["report", str(run)]) == 0
    assert "is damaged" in (run / "report.html").read_text()
