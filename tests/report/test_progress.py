"""Tests the display of a run: one line per step without a terminal, the pace computed from the records, the final
figures."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from tests.report.runs import record, summary
from treeadv.report.progress import STATES, Progress, clock, final_table, spark


def run(records: list[dict[str, Any]], total: int = 40, **options: Any) -> str:
    out = io.StringIO()
    with Progress(total, Console(file=out, width=200, **options)) as progress:
        for r in records:
            progress.update(r)
    return out.getvalue()


def test_display_keeps_a_bounded_number_of_records() -> None:
    progress = Progress(1000, Console(quiet=True))
    for step in range(1, 1001):
        progress.update(record(step))
    assert len(progress._records) == 48


def test_progress_without_a_terminal_has_one_line_per_step() -> None:
    lines = run([record(1), record(2)]).splitlines()
    assert lines[:2] == ["starting a run of 40 steps", f"forests: {STATES}"]
    assert lines[2:] == [
        "step 1/40  reward 0.25  forests ready 2 leased 1 trained 1  tokens/s 81  shared 24%  staleness 0.8 (max 2)"
        "  ETA after the next step",
        "step 2/40  reward 0.30  forests ready 2 leased 1 trained 2  tokens/s 82  "
        "shared 23%  staleness 0.8 (max 1)  ETA 7:55",
    ]


def test_display_on_a_terminal_updates_in_place() -> None:
    text = run([record(s) for s in range(1, 6)], force_terminal=True)
    assert "step 5/40" in text and "ETA 7:18" in text
    assert "▁▃▅▆█" in text
    assert "reward of 5 steps" in text


@pytest.mark.parametrize(
    ("elapsed", "eta"),
    [
        ([100, 110], "1:20"),  # the pace does not include the first step, because its time includes the start
        ([0, 100, *(100 + 10 * i for i in range(1, 11))], "3:00"),  # the pace is the mean of the last ten steps
    ],
)
def test_time_left_uses_the_pace_of_the_last_steps(elapsed: list[float], eta: str) -> None:
    records = [record(i + 1, elapsed_s=float(t)) for i, t in enumerate(elapsed)]
    total = 10 if len(elapsed) == 2 else 30
    assert run(records, total).rstrip().endswith(f"ETA {eta}")


def test_progress_continues_after_a_return_to_a_checkpoint() -> None:
    assert run([record(4), record(5), record(4, elapsed_s=70.0)]).splitlines()[-1].startswith("step 4/40")


def test_time_left_is_zero_after_the_last_step() -> None:
    assert run([record(39), record(40)]).rstrip().endswith("ETA 0:00")
    assert run([record(40)]).rstrip().endswith("ETA 0:00")


def test_final_table_has_the_figures_and_the_folder() -> None:
    out = io.StringIO()
    final_table(summary([record(1), record(8)]), Console(file=out, width=120))
    text = out.getvalue()
    for phrase in (
        "8 steps in 1:40",
        "0.250",
        "0.550",
        "4,000",
        "3,200 instead of 4,160 (x 1.30, 23% shared)",
        "max 2",
        "1:15",
    ):
        assert phrase in text
    assert text.splitlines()[-6:] == [
        "Run folder: runs/demo",
        "Report: runs/demo/report.html",
        "Every forest in the browser: treeadv view runs/demo",
        "Last step on the screen: treeadv watch runs/demo",
        "Check of its forests: treeadv audit runs/demo",
        "Beside another run: treeadv compare runs/demo OTHER_RUN --html compare.html",
    ]


def test_command_in_the_final_table_quotes_the_folder() -> None:
    out = io.StringIO()
    final_table(summary([record(1)]) | {"run": "my runs/[a]"}, Console(file=out, width=60))
    assert "treeadv audit 'my runs/[a]'" in out.getvalue()


def test_start_says_what_happens_until_the_first_step() -> None:
    def texts(**options: Any) -> str:
        out = io.StringIO()
        with Progress(9, Console(file=out, width=200, **options)) as progress:
            progress.say("loading x[1] into the engine")
            progress.update(record(1))
            progress.say("starting actors again")
        return out.getvalue()

    plain = texts().splitlines()
    assert plain[1] == "loading x[1] into the engine" and plain[-1] == "starting actors again"
    live = texts(force_terminal=True)
    assert "leased: in a step that no checkpoint holds yet" in live
    assert "starting actors again" not in live  # the figures of the steps stay on the screen


def test_run_without_a_step_has_no_figures() -> None:
    out = io.StringIO()
    final_table({"steps": 0}, Console(file=out))
    assert out.getvalue() == "No step was completed.\n"


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (754, "12:34"), (3723, "1:02:03")])
def test_seconds_are_shown_as_a_clock_time(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_sparkline_spans_the_values_and_keeps_the_last() -> None:
    assert spark([1.0]) == "▁"
    assert spark([0.0, 0.5, 1.0]) == "▁▄█"
    assert len(spark([float(i) for i in range(1000)], 48)) == 48
    assert spark([0.0] * 999 + [1.0], 48)[-1] == "█"
