"""Tests that every command of the project answers a mistyped option, command or choice with one line."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pytest

import actors.cli
from tests.command_lines import COMMANDS, PROCESSES, TOOLS, WORDS, modules, parser_of, start
from treeadv.command_line import FIELD, Parser, nearest, run_command, tool_parser
from treeadv.errors import BadInput


def mistyped(word: str) -> str:
    """Return a word with two letters of its middle exchanged."""
    at = next(i for i in range(len(word) // 2, -1, -1) if word[i] != word[i + 1] and "-" not in word[i : i + 2])
    return word[:at] + word[at + 1] + word[at] + word[at + 2 :]


def refusal(call: Callable[[], object], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the line that a command prints when it refuses its arguments."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        call()
    shown = capsys.readouterr()
    assert end.value.code == 2 and shown.out == ""
    (line,) = shown.err.splitlines()
    return line


def check_options(parser: argparse.ArgumentParser, capsys: pytest.CaptureFixture[str]) -> None:
    """Check that each option of a parser is suggested for its misspelling."""
    for option in (o for o in parser._option_string_actions if o.startswith("--")):
        wrong = mistyped(option)
        line = refusal(lambda: parser.parse_args([wrong]), capsys)  # noqa: B023 - called here
        assert line == f"treeadv: error: unknown option {wrong}, did you mean {option}? (see {parser.prog} --help)"
    line = refusal(lambda: parser.parse_args(["--qqqq"]), capsys)
    assert line == f"treeadv: error: unknown option --qqqq (see {parser.prog} --help)"


def check_choices(parser: argparse.ArgumentParser, capsys: pytest.CaptureFixture[str]) -> None:
    """Check that each choice of a parser is suggested for its misspelling: commands, positional arguments, options."""
    for action in (a for a in parser._actions if a.choices):
        for choice in map(str, action.choices or ()):
            wrong = mistyped(choice)
            line = refusal(lambda: parser.parse_args([*action.option_strings[:1], wrong]), capsys)  # noqa: B023
            assert wrong in line and f", did you mean {choice}? (see {parser.prog} --help)" in line
        line = refusal(lambda: parser.parse_args([*action.option_strings[:1], "qqqq"]), capsys)  # noqa: B023
        assert "qqqq; choose from " in line and all(str(c) in line for c in action.choices or ())


@pytest.mark.parametrize("words", WORDS)
def test_command_suggests_options_and_choices(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    check_options(WORDS[words], capsys)
    check_choices(WORDS[words], capsys)


@pytest.mark.parametrize("words", [w for w in WORDS if w])
def test_command_is_named_though_it_lacks_arguments(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Without the check of the options, argparse would only report the missing arguments, or name `treeadv`."""
    line = refusal(lambda: actors.cli.main([*words.split(), "--hlep"]), capsys)
    assert line == f"treeadv: error: unknown option --hlep, did you mean --help? (see treeadv {words} --help)"


@pytest.mark.filterwarnings("ignore:.* found in sys.modules after import of package:RuntimeWarning")
@pytest.mark.parametrize("tool", TOOLS)
def test_tool_suggests_options_and_choices(tool: str, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    parser = parser_of(tool, monkeypatch)
    assert parser.prog == (f"treeadv {tool}" if tool.startswith("bench ") else f"python -m {tool}")
    check_options(parser, capsys)
    check_choices(parser, capsys)
    line = refusal(lambda: start(tool, ["--hlep"], monkeypatch), capsys)
    assert line == f"treeadv: error: unknown option --hlep, did you mean --help? (see {parser.prog} --help)"


def test_processes_and_commands_are_modules_of_the_project() -> None:
    assert modules() >= PROCESSES | COMMANDS
    assert len(WORDS) > 15 and len(TOOLS) > 20


def fields() -> Parser:
    """Return a parser with an option, a value that may be negative, and fields of the configuration."""
    parser = tool_parser("python -m tool", None)
    parser.add_argument("--shift", type=float)
    parser.add_argument("--resume")
    parser.add_argument("overrides", nargs="*", metavar=FIELD)
    return parser


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "5"], "unknown option --steps; fields are set without dashes: run.steps=5"),
        (["--steps"], "unknown option --steps; fields are set without dashes: run.steps=VALUE"),
        (["--preset=grpo"], "fields are set without dashes: learner.preset=grpo"),  # though --resume is similar
        (["--shfit", "-1"], "unknown option --shfit, did you mean --shift?"),
        (["-x"], "unknown option -x"),
        (["a=1", "--resume", "x", "b=2"], f"unexpected argument b=2; write every {FIELD} at one place"),
    ],
)
def test_wrong_option_may_mean_a_field(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refusal(lambda: fields().parse_args(words), capsys)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--shift", "-1.5"], -1.5),
        (["--shift=-1.5"], -1.5),
        (["--sh", "2"], 2.0),
        (["--", "--shift"], None),
    ],
)
def test_right_arguments_are_not_refused(words: list[str], expected: float | None) -> None:
    assert fields().parse_args(words).shift == expected


def test_nearest_ignores_case_and_dashes() -> None:
    assert nearest("--Dry-Rnu", ["--dry-run", "--local"]) == ", did you mean --dry-run?"
    assert nearest("NMAE", ["queue", "learner"]) == ""


def test_bad_input_of_a_tool_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> None:
        raise ExceptionGroup("many", [ExceptionGroup("inner", [BadInput("x: is bad")])])

    assert run_command(fails) == 2
    assert capsys.readouterr().err == "treeadv: error: x: is bad\n"


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "x"])
@pytest.mark.parametrize(
    ("tool", "options"),
    [
        ("plan", ("--gpu-gb", "--host-gb")),
        ("bench ragged", ("--mean", "--rows", "--answers")),
        ("bench context", ("--layers", "--prompt", "--answers", "--steps")),
        ("bench queue", ("--forests", "--leaves", "--tokens", "--per-step", "--window")),
        ("bench learner", ("--leaves", "--step", "--length", "--rounds")),
        ("bench rollout", ("--forests", "--leaves", "--trees", "--max-tokens")),
    ],
)
def test_number_that_must_be_above_zero_is_refused(
    tool: str, options: Sequence[str], value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = WORDS[tool] if tool == "plan" else parser_of(tool, monkeypatch)
    for option in options:
        with pytest.raises(SystemExit, match="2"):
            parser.parse_args([*["r.yaml"] * (tool == "plan"), f"{option}={value}"])
        assert f"argument {option}: '{value}' is not a " in capsys.readouterr().err


def denied(read: Callable[[], object]) -> None:
    """Call `read` as a user without rights. The system's own error leaves this function."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        read()
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize(
    "reader", [lambda path: path.open(), lambda path: pa.OSFile(str(path))], ids=["python", "pyarrow"]
)
def test_missing_permission_is_one_line_with_the_file(reader, grouped: bool, tmp_path: Path, capsys) -> None:
    path = tmp_path / "closed" / "config.yaml"
    path.parent.mkdir()
    path.write_text("run: {}")
    path.parent.chmod(0)

    def call() -> None:
        try:
            denied(lambda: reader(path))
        except PermissionError as e:
            raise ExceptionGroup("readers", [ValueError(), e]) if grouped else e from None

    try:
        assert run_command(call) == 2
    finally:
        path.parent.chmod(0o700)
    (line,) = capsys.readouterr().err.splitlines()
    assert str(path) in line and "Permission denied" in line and "give this user the permission" in line


def test_missing_permission_without_a_file_is_no_bad_input() -> None:
    def call() -> None:
        raise PermissionError(1, "Operation not permitted")

    with pytest.raises(PermissionError):
        run_command(call)


@pytest.mark.parametrize("name", ["h\udcff.jsonl", "\ud800"])
def test_name_that_is_not_utf8_is_refused(name: str, capsys) -> None:
    with pytest.raises(SystemExit):
        actors.cli.main(["eval", "--model", "m", "--data", name])
    (line,) = capsys.readouterr().err.splitlines()
    assert f"argument --data: {name!a}: the name is not UTF-8 text; rename the file" in line


def test_name_of_any_language_is_taken(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert actors.cli.main(["grade", "größe-数.jsonl"]) == 2
    assert "größe-数.jsonl: no such file" in capsys.readouterr().err
