"""Tests `treeadv runs` and `treeadv compare` on folders of runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.report.runs import make_run, record
from treeadv.cli.main import main
from treeadv.report.overview import comparison_page, differences, read_run, runs_in
from treeadv.storage.lock import LocalLock


def run_named(root: Path, name: str, steps: int, reward: float = 0.5, **changes: str) -> Path:
    """Return a finished run of `steps` steps whose folder is `name`; `changes` replace text of its configuration."""
    made = make_run(root / f"making-{name}", [], [record(s, reward_mean=reward) for s in range(1, steps + 1)])
    config = made / "config.yaml"
    text = re.sub(r"  steps: \d+", f"  steps: {changes.pop('planned', str(steps))}", config.read_text())
    for before, after in changes.items():
        assert f"{before}: " in text
        text = re.sub(rf"{before}: \S+", f"{before}: {after}", text)
    config.write_text(text)
    return made.rename(root / name)


def test_runs_lists_state_and_steps_of_each_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_named(tmp_path, "whole", 3, reward=0.75)
    run_named(tmp_path, "cut", 2, planned="9")
    assert main(["runs", str(tmp_path)]) == 0
    lines = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()[1:]}
    assert lines["whole"][1:6] == ["finished", "3", "of", "3", "0.750"]
    assert lines["cut"][1:5] == ["stopped", "2", "of", "9"]


def test_locked_run_is_running_and_stays_locked(tmp_path: Path) -> None:
    run = run_named(tmp_path, "live", 1, planned="9")
    lock = LocalLock(run / "replay")
    assert read_run(run).state == "running"
    lock.release()
    assert read_run(run).state == "stopped"


def test_damaged_run_is_listed_with_its_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_named(tmp_path, "sound", 1)
    broken = run_named(tmp_path, "broken", 1)
    (broken / "metrics.jsonl").write_text("{half\n{}\n")
    assert main(["runs", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "damaged" in out and "line 1 is damaged" in " ".join(out.split())
    assert {r.path.name: r.state for r in runs_in(tmp_path)} == {"sound": "finished", "broken": "damaged"}


HOSTILE = "\x1b[31m\u202e[/x]"


@pytest.mark.parametrize("command", ["runs", "compare", "show", "watch"])
def test_names_in_a_run_control_no_terminal(tmp_path: Path, command: str, capsys) -> None:
    run = run_named(tmp_path, f"a{HOSTILE.replace('/', '-')}", 2)
    tree = yaml.safe_load((run / "config.yaml").read_text())
    tree["model"]["path"] = f"models/a{HOSTILE}"
    (run / "config.yaml").write_text(yaml.safe_dump(tree))
    other = run_named(tmp_path, "b", 2)
    targets = {"runs": [tmp_path], "compare": [run, other]}.get(command, [run])
    assert main([command, *map(str, targets)]) == 0
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err and "\u202e" not in out + err
    assert "[31m" in out


def test_folder_that_does_not_exist_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.startswith(f"treeadv: error: {tmp_path / 'none'} is no folder")


def test_compare_lists_only_keys_that_differ(tmp_path: Path) -> None:
    runs = [read_run(run_named(tmp_path, n, 2, preset=p)) for n, p in (("a", "grpo"), ("b", "unbiased"))]
    found = dict(differences(runs))
    assert found["learner.preset"] == ["grpo", "unbiased"]
    assert set(found) <= {"learner.preset", "run.root"}


def test_page_of_a_comparison_has_a_curve_for_each_run(tmp_path: Path) -> None:
    page, a = tmp_path / "page.html", run_named(tmp_path, "a", 4, reward=0.25)
    b = run_named(tmp_path, "b", 2, reward=0.625)
    assert main(["compare", str(a), str(b), "--html", str(page)]) == 0
    html = page.read_text()
    assert "0.25" in html and "0.625" in html and "<script src" not in html
    assert html.count('<figure class="card"') > 5
    assert comparison_page([read_run(a), read_run(b)]) == html


def test_more_runs_than_colours_are_refused_for_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(run_named(tmp_path, "a", 1))
    assert main(["compare", *[run] * 7, "--html", str(tmp_path / "page.html")]) == 2
    assert "compares at most 6" in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()
