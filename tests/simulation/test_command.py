"""Tests the command, its figures and the service times that it reads from a run."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.simulation.__main__ import given_times, main
from benchmarks.simulation.figures import by_length, knee, saturated
from benchmarks.simulation.model import Growth
from benchmarks.simulation.service import Lengths, measured
from tests.report.runs import make_run, record
from treeadv.errors import BadInput

QUICK = ["--steps", "4", "--skip", "1", "--times", "step=0.1", "learner_token=0.01", "--set", "sampling.leaves=2"]


def test_command_prints_lines_and_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "curves.svg"
    main([*QUICK, "--generators", "1", "3", "--picture", str(picture)])
    lines = [json.loads(x) for x in capsys.readouterr().out.splitlines()]
    assert [x["way"] for x in lines] == ["service", "run", "run", "knee"]
    assert {x["bench"] for x in lines} == {"simulation"} and lines[-1]["generators"] in (1, 3)
    assert len(lines[1]["stale_by_length"]) == 10
    assert ElementTree.parse(picture).getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_autoscaled_run_names_its_last_target(capsys: pytest.CaptureFixture[str]) -> None:
    main([*QUICK, "--generators", "2", "--autoscale"])
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["way"] == "autoscaler" and line["target"] == 2 and line["reversals"] == 0


@pytest.mark.parametrize("text", ["speed=1", "step", "step=fast", "step=-1", "step=nan"])
def test_bad_service_time_is_named(text: str) -> None:
    with pytest.raises(BadInput, match=f"--times {text}: write NAME=SECONDS"):
        given_times([text])


def test_skip_of_all_steps_is_refused() -> None:
    with pytest.raises(BadInput, match="--skip 4: take fewer than the 4 steps"):
        main(["--steps", "4", "--skip", "4"])


def test_service_times_are_those_of_the_counted_steps(tmp_path: Path) -> None:
    """A record has 5.8 s of learner, 400 trained and 500 drawn tokens, and 9 s in which the engines worked."""
    records = [record(n) for n in range(1, 6)]
    records[0]["seconds"]["forward_backward"] = 100.0  # the first step is not counted
    records[3]["seconds"]["checkpoint"] = 3.0
    run = make_run(tmp_path, [], records)
    times = measured(run, row_share=0.25, skip=1)
    rows = 48
    assert times["learner_token"] == pytest.approx(5.8 / 400)
    assert times["publish"] == pytest.approx(0.4) and times["checkpoint"] == pytest.approx(3.0)
    assert rows / (times["step"] + rows * times["row"]) == pytest.approx(500 / 9)
    assert rows * times["row"] == pytest.approx(0.25 * rows * 9 / 500)
    with pytest.raises(BadInput, match=r"the run has 5 steps; take fewer than that with --skip 5"):
        measured(run, row_share=0.25, skip=5)


def test_knee_is_the_first_number_near_the_best_rate() -> None:
    assert knee([(1, 1.0), (2, 1.9), (4, 1.95), (8, 2.0)]) == 2
    assert knee([(1, 2.0), (2, 1.9)]) == 1


@pytest.mark.parametrize(
    ("shares", "limit"),
    [
        ({"learner": 0.99, "generators": 0.3, "slots": 1.0}, "learner"),
        ({"learner": 0.5, "generators": 0.98, "slots": 0.9}, "generators"),
        ({"learner": 0.5, "generators": 0.3, "slots": 0.9}, "slots"),
        ({"learner": 0.5, "generators": 0.3, "queue": 0.97, "slots": 0.9}, "queue"),
    ],
)
def test_limit_of_a_run_is_named(shares: dict[str, float], limit: str) -> None:
    assert saturated({"queue": 0.0, "driver": 0.0, "reward": 0.0} | shares) == limit


def test_shares_by_length_are_of_deciles() -> None:
    growths = [Growth(draw, 0, [1, draw + 1]) for draw in range(20)]
    shares = by_length(growths[::-1], [g.draw >= 17 for g in growths[::-1]])
    assert shares == [0.0] * 8 + [0.5, 1.0]


def test_lengths_of_a_prompt_are_similar_and_reproducible() -> None:
    lengths = Lengths(seed=3, median=100.0, longest=10_000, sigma_prompt=2.0, sigma_answer=0.01)
    first, again = (lengths.of_forest(7, attempt, 4) for attempt in (0, 1))
    assert first == lengths.of_forest(7, 0, 4) != again
    assert max(first + again) < 1.2 * min(first + again)  # a long prompt is also long in its next attempt
    many = sorted(lengths.of_forest(draw, 0, 1)[0] for draw in range(400))
    assert many[200] == pytest.approx(100, rel=0.5) and many[-1] == 10_000
