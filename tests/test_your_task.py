"""Runs the worked example of docs/your-task.md block by block, and commands of the other documents."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

import actors.cli
from treeadv.cli.parser import new_parser
from treeadv.config import load, parse
from treeadv.launch import launch

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / "docs" / "your-task.md").read_text(), re.M | re.S)


@pytest.mark.slow
def test_worked_example_runs_block_by_block(tiny_model: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    shown = []
    for language, text in BLOCKS:
        block = text.replace("smollm2-135m-instruct", str(tiny_model))
        name, _, rest = block.partition("\n")
        if file := re.fullmatch(r"# (\S+\.\w+)", name):
            Path(file[1]).write_text(rest)
        elif language == "yaml":
            parse(yaml.safe_load(block), "the page")
        else:
            assert language == "bash"
            for line in block.splitlines():
                assert actors.cli.main(shlex.split(line)[1:]) == 0, line
                shown.append(capsys.readouterr().out)
    assert "4 problems; next: treeadv train --config first.yaml --dry-run" in shown[0]
    assert "3 problems to train on, 1 held out" in shown[2] and "Answer with a number." in shown[2]
    assert re.search(r"'7': verified, reward [12]\b", shown[2]) and "everything fits" in shown[2]
    run = Path("runs/stops")
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]
    before, now = load(run / "config.1.yaml"), load(run / "config.yaml")
    assert (before.run.steps, now.run.steps) == (2, 3) and before.task == now.task
    assert Path(now.task.source).is_absolute() and list(now.task.content) == [now.task.source]
    _check_resume_after_a_move(tmp_path, monkeypatch, capsys)


def _check_resume_after_a_move(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """Check that a run resumes after a move of the run and its data, and is refused if the content of the data has
    changed."""
    moved = folder.rename(folder.with_name(f"{folder.name}-moved"))
    monkeypatch.chdir("/")
    monkeypatch.syspath_prepend(moved)
    run = launch(None, str(moved / "runs" / "stops"), False, [])
    run.lock.release()
    assert run.config.task.source == str(moved / "stops.jsonl") and run.config.run.root == str(moved / "runs")
    with (moved / "stops.jsonl").open("a") as f:
        f.write('{"question": "1?", "result": {"value": 1}, "level": 1}\n')
    assert actors.cli.main(["train", "--local", "--resume", str(moved / "runs" / "stops")]) == 2
    assert "stops.jsonl: its content is not the one that the run" in capsys.readouterr().err


def commands(page: Path) -> list[str]:
    """Return the treeadv commands of a page: the lines of its shell blocks, and the texts in backticks."""
    text = page.read_text()
    blocks = re.findall(r"^```(?:bash|sh|shell|)\n(.*?)^```$", text, re.M | re.S)
    lines = [line for block in blocks for line in re.sub(r"\\\n\s*", " ", block).splitlines()]
    inline = re.findall(r"`(treeadv [^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S))
    found = [re.sub(r"^(?:[A-Z_]+=\S+ )+", "", line.partition("  #")[0].strip()) for line in [*lines, *inline]]
    return [c for c in found if c.startswith("treeadv ") and "..." not in c and "[" not in c]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_of_a_page_are_understood(page: Path, capsys) -> None:
    parser, subcommands = new_parser()
    actors.cli.add_all(subcommands)
    for command in commands(page):
        words = [re.sub(r"^N$", "1", w) for w in shlex.split(command)[1:] if w not in ("|", ">")]
        if words == ["--help"] or words[1:] == ["--help"]:
            continue
        if words[0] == "bench" and len(words) == 2 and words[1] not in actors.cli.BENCHMARKS:
            pytest.fail(f"{page.name}: {command}")
        try:
            parser.parse_args(words)
        except SystemExit:
            known = words[0] in subcommands.choices
            if len(words) > 1 or not known:  # a command without arguments is a name, not a call
                pytest.fail(f"{page.name}: {command}: {capsys.readouterr().err}")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_files_that_the_commands_of_a_page_read_exist(page: Path) -> None:
    text = page.read_text()
    for command in commands(page):
        for option, path in re.findall(r"--(config|data|out|html|svg|recipe)[ =](\S+)", command):
            folder = Path(path).parent
            if option in ("config", "data") and str(folder).startswith(("docs", "deploy")):
                assert (ROOT / path).is_file(), f"{page.name}: {command}"
            if option in ("out", "html", "svg") and str(folder) != ".":
                made = f"mkdir -p {folder}" in text or ((ROOT / folder).is_dir() and folder.name != "build")
                assert made, f"{page.name}: {command} assumes the folder {folder}"
