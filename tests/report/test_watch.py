"""Tests what `treeadv watch` reads from the files of a live, a finished and a killed run, and what it shows."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tests.report.runs import make_run, record, write_summary
from tests.strategies import build
from treeadv.cli.main import main
from treeadv.errors import BadInput
from treeadv.forest import Forest
from treeadv.report.run_view import RunView, Tail
from treeadv.report.screen import screen, summary
from treeadv.storage.lock import LocalLock


def forest(gold: str = "7") -> Forest:
    made = build([-1, 0, 0, -1, 3, 3], [2, 3, 1, 2, 2, 2], rewards=[1.0, 0.0, 0.0, 1.0], version=0)
    return replace(made, gold=gold)


def shown(view: RunView, width: int = 100) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(summary(view))
    return out.getvalue()


def targets(run: Path, *roles: str) -> None:
    entries = [{"targets": ["127.0.0.1:1"], "labels": {"role": r, "instance": f"{r}-{i}"}} for i, r in enumerate(roles)]
    (run / "targets.json").write_text(json.dumps(entries))


def test_finished_run_is_shown_with_law_curves_and_last_forest(tmp_path: Path) -> None:
    run = make_run(tmp_path, [forest("first"), forest("last")], [record(s) for s in range(1, 41)])
    text = shown(RunView(run))
    for phrase in ("demo  finished  step 40/40", "admitted 43 = ready 2 + leased 1 + trained 40 + dropped 0: holds",
                 "mean 0.8, max 1 versions; the bound is 2", "treeadv report", "gold answer last",
                 "✓ verified 1", "verified 3, wrong 5", "mixed outcomes", "dropped"):  # fmt: skip
        assert phrase in text, phrase
    assert "first" not in text and "ETA" not in text


def test_killed_run_names_the_command_that_goes_on(tmp_path: Path) -> None:
    run = make_run(tmp_path, [], [record(1)])
    text = " ".join(shown(RunView(run), 300).split())
    assert f"the driver was killed, or runs on another machine; go on: treeadv train --local --resume {run}" in text
    write_summary(run, [record(1)])
    targets(run, "driver", "queue")
    text = " ".join(shown(RunView(run), 300).split())
    assert f"stopped before its last step; go on: treeadv train --resume {run}" in text
    assert "none; the run had Ray actors" in text  # targets.json still exists after the end of the actors


def test_running_run_shows_its_actors(tmp_path: Path) -> None:
    run = make_run(tmp_path, [], [record(1), record(2, law_error=3)])
    targets(run, "driver", "queue", "learner", "generator")
    lock = LocalLock(run)
    text = shown(RunView(run), 200)
    lock.release()
    for phrase in ("demo  running  step 2/40", "1 of 1 up", "waits 31% of a step of 12.5 s", "decodes 72% of the time",
                 "ETA 7:55", "has an error of 3", "! The equation admitted"):  # fmt: skip
        assert phrase in text, phrase


@pytest.mark.parametrize("content", ["", "7", "[7]", '[{"labels": {}}]', "\ud800"])
def test_damaged_list_of_actors_is_named(tmp_path: Path, content: str) -> None:
    run = make_run(tmp_path, [], [record(1)])
    (run / "targets.json").write_text(content, errors="surrogatepass")
    lock = LocalLock(run)
    view = RunView(run)
    lock.release()
    assert view.last["step"] == 1 and "targets.json" in view.fault


def test_run_without_a_step_says_what_it_waits_for(tmp_path: Path) -> None:
    run = make_run(tmp_path, [], [])
    lock = LocalLock(run)
    assert "the roles load the model; no step yet" in shown(RunView(run))
    lock.release()
    assert "no forest yet" in shown(RunView(run))


def test_view_follows_new_steps_and_a_resume(tmp_path: Path) -> None:
    run = make_run(tmp_path, [], [record(1), record(2)])
    view = RunView(run)
    view.folder.record(record(3))
    view.refresh()
    assert [r["step"] for r in view.records] == [1, 2, 3]
    view.folder.rewind(1)
    view.refresh()
    assert [r["step"] for r in view.records] == [1]


def test_damaged_files_are_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path, [], [record(1)])
    (run / "evaluations.jsonl").write_text("{}\n")
    text = shown(RunView(run), 300)
    assert "evaluations.jsonl: line 1 is damaged" in text and "step 1/40" in text


def test_text_of_the_model_controls_no_terminal(tmp_path: Path) -> None:
    run = make_run(tmp_path, [forest("\x1b[2J[bold]x[/bold]\u202e")], [record(1)])
    text = shown(RunView(run))
    assert "\x1b" not in text and "\u202e" not in text and "[bold]x[/bold]" in text


@pytest.mark.parametrize(("width", "height"), [(60, 20), (100, 40), (200, 50)])
def test_screen_fits_the_terminal(tmp_path: Path, width: int, height: int) -> None:
    run = make_run(tmp_path, [forest()], [record(s) for s in range(1, 41)])
    out = io.StringIO()
    console = Console(file=out, width=width, height=height, force_terminal=True)
    console.print(screen(RunView(run), width))
    lines = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", out.getvalue()).splitlines()
    assert len(lines) == height and max(map(len, lines)) <= width
    assert "finished" in lines[0] and "run" in lines[2]


def test_screen_on_a_terminal_follows_the_run_to_its_end(tmp_path: Path) -> None:
    run = make_run(tmp_path, [forest()], [record(1)])
    lock = LocalLock(run)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "treeadv.cli.main", "watch", str(run), "--interval", "1"]
    process = subprocess.Popen(command, stdout=theirs, env={**os.environ, "TERM": "xterm", "COLUMNS": "120"})
    os.close(theirs)
    text, until = "", time.monotonic() + 60
    while "step 1/40" not in text and time.monotonic() < until:
        text += os.read(ours, 65536).decode(errors="replace")
    RunView(run).folder.record(record(40))
    while "step 40/40" not in text and time.monotonic() < until:
        text += os.read(ours, 65536).decode(errors="replace")
    lock.release()
    try:
        while block := os.read(ours, 65536):
            text += block.decode(errors="replace")
    except OSError:  # the other end of the terminal is closed
        pass
    os.close(ours)
    assert process.wait(30) == 0
    assert "running" in text and text.rindex("finished") > text.rindex("\x1b[?1049l")


def test_watch_without_a_terminal_prints_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path, [], [record(1)])
    lock = LocalLock(run)
    assert main(["watch", str(run)]) == 0
    lock.release()
    assert "step 1/40" in capsys.readouterr().out


def test_watch_of_a_folder_without_a_run_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path, [], [])
    assert main(["watch", str(tmp_path)]) == 2
    assert "the runs in it, newest first" in capsys.readouterr().err


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 40)), max_size=8))
def test_tail_reads_every_whole_line_once(
    tmp_path_factory: pytest.TempPathFactory, parts: list[tuple[int, int]]
) -> None:
    """The file grows by whole lines or by parts of a line. Both give the same records."""
    path = tmp_path_factory.mktemp("tail") / "metrics.jsonl"
    whole = b"".join(json.dumps({"step": s, "text": "é" * s}).encode() + b"\n" for s in range(1, 50))
    tail, seen, at = Tail(path), [], 0
    for lines, extra in parts:
        end = at
        for _ in range(lines):
            end = whole.index(b"\n", end) + 1
        with path.open("ab") as f:
            f.write(whole[at : end + extra])
        at = end + extra
        seen += tail.read()[1]
    complete = whole[:at].rpartition(b"\n")[0].splitlines()
    assert seen == [json.loads(line) for line in complete]


def test_tail_starts_over_when_the_file_is_replaced(tmp_path: Path) -> None:
    path, other = tmp_path / "metrics.jsonl", tmp_path / "other"
    path.write_text('{"step": 1}\n{"step": 2}\n')
    tail = Tail(path)
    assert tail.read() == (True, [{"step": 1}, {"step": 2}])
    other.write_text('{"step": 1}\n{"step": 5}\n')
    os.replace(other, path)
    assert tail.read() == (True, [{"step": 1}, {"step": 5}])
    assert tail.read() == (False, [])
    path.write_text('{"step": 1}\nx\n')
    with pytest.raises(BadInput, match="line 2 is damaged"):
        tail.read()
