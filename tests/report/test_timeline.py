"""Tests the picture of who did what when."""

from __future__ import annotations

from tests.report.runs import record
from treeadv.report.markup import html
from treeadv.report.timeline import bars, draw

SECONDS = {"wait": 2.0, "pack": 0.5, "forward_backward": 3.0, "optimizer": 0.5, "publish": 1.0, "checkpoint": 0.25}


def steps(*elapsed: float) -> list[dict]:
    return [record(i, elapsed_s=e, seconds=SECONDS, generator_busy_s=5.0) for i, e in enumerate(elapsed, start=1)]


def test_phases_follow_in_the_order_of_the_loop():
    found = [(b.label, b.begin, b.end) for b in bars(steps(10.0)[0], 100.0, local=False)]
    assert found == [
        ("checkpoint", 100.0, 100.25),
        ("waits", 100.25, 102.25),
        ("step", 102.25, 106.25),
        ("publishes", 106.25, 107.25),
    ]


def test_a_local_run_publishes_before_it_waits():
    assert [b.label for b in bars(steps(10.0)[0], 0.0, local=True)] == ["checkpoint", "publishes", "waits", "step"]


def test_picture_starts_at_the_second_of_its_records():
    drawn = draw(steps(10.0, 20.0, 30.0), 1, local=False)
    text = html(drawn)
    assert "steps 2 to 3" in text and "step 2: waits 2.00 s" in text and "step 1:" not in text
    assert "step 3: the engines computed 50% of the time" in text and ">10 s<" in text and ">30 s<" in text


def test_busy_seconds_are_shared_by_all_generators():
    assert "the engines computed 25% of the time" in html(draw(steps(10.0, 20.0), 2, local=False))


def test_a_single_record_gives_no_picture():
    assert draw(steps(10.0), 1, local=False) is None
