"""Tests that `treeadv show RUN` prints the forests of a run by step and index as text."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from actors.cli import main


def shown(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["show", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_run_without_a_step_lists_its_forests(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = shown(capsys, run)
    lines = [line.split() for line in out.splitlines() if line[:1].isdecimal()]
    assert [(line[0], line[1]) for line in lines[:6]] == [(str(step), "0") for step in range(1, 7)]
    assert "1 verified, 1 wrong" in out and "B: what" in out and "--step N" in out


def test_step_of_a_run_is_drawn_with_text(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = shown(capsys, run, "--step", 2)
    assert "B: what is 3+3?" in out and "three" in out and "<answer>6</answer>  ✓ verified 1" in out


def test_full_text_has_every_token_of_a_long_segment(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "652 tokens left out (--full shows them)" in " ".join(shown(capsys, run, "--step", 6).split())
    out = shown(capsys, run, "--step", 6, "--full")
    assert "left out" not in out and out.count("x") >= 700


def test_leaf_is_printed_with_what_the_verifier_read(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = shown(capsys, run, "--step", 4, "--index", 0, "--leaf", 1)
    assert "the <b>owl</b> & <answer>cat</answer>" in out
    facts = dict(line.split(None, 1) for line in out.splitlines()[-4:])
    assert facts["verdict"].startswith("✗ wrong 0") and "read" in out and "cat" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--step", "7"], "--step 7: the journal of RUN has steps up to 6"),
        (["--step", "2", "--index", "1"], "--index 1: step 2 of RUN holds 1 forests, counted from 0"),
        (["--step", "2", "--leaf", "9"], "--leaf 9: the forest has 2 leaves, counted from 0"),
        (["--index", "1"], "--index: RUN is a run; choose a step with --step N"),
        (["--step", "2", "--preset", "grpo"], "--preset grpo: RUN is a run, whose own preset is shown"),
    ],
)
def test_wrong_choice_gets_one_line(
    run: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["show", str(run), *arguments]) == 2
    error = capsys.readouterr().err
    assert message.replace("RUN", str(run)) in error and error.count("\n") == 1


@pytest.mark.parametrize("damage", ["empty", "torn", "folder"])
def test_journal_without_a_step_is_named_in_one_line(
    run: Path, damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(run, broken)
    for file in (broken / "replay" / "journal").iterdir():
        file.unlink()
        file.mkdir() if damage == "folder" else file.write_text("[1, 2]\n" if damage == "torn" else "")
    assert main(["show", str(broken), "--step", "1"]) == 2
    error = capsys.readouterr().err
    assert "--step 1: " in error and "journal" in error and "steps up to" not in error and error.count("\n") == 1
