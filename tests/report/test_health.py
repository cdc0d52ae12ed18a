"""Tests the findings for given records of a run: alarms, and advice for a run without alarms."""

from __future__ import annotations

from typing import Any

import pytest

from tests.report.runs import CONFIG, record
from treeadv import config as configuration
from treeadv.config import describe
from treeadv.report import health
from treeadv.report.health import advice, alarms

RUN = configuration.parse({**CONFIG, "generator": {"count": 2}}, "test")


def records(steps: int = 40, **changes: Any) -> list[dict[str, Any]]:
    """Return records without a finding. A function in `changes` returns the value of a field in each step."""
    calm = {"zero_variance": 0.2, "reward_mean": 0.5, "entropy_mean": 1.0, "sharing": 0.3, "generator_busy_s": 20.0}
    calm |= {"dropped": {}, "seconds": {"wait": 1.0}}
    made = [record(step, **calm) for step in range(1, steps + 1)]
    for r in made:
        r.update({k: v(r["step"]) if callable(v) else v for k, v in changes.items()})
    return made


def test_healthy_run_has_no_finding() -> None:
    assert alarms(records()) == [] and advice(records(), RUN, False) == [] == advice(records(), RUN, True)


def test_run_without_a_step_has_no_finding() -> None:
    assert alarms([]) == [] == advice([], RUN, False)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"law_error": 2}, "has an error of 2"),
        ({"nonfinite_updates": lambda step: int(step == 40)}, "1 updates of the last 20 steps"),
        ({"verdicts": {"verified": 4, "crash": 2, "timeout": 2}}, "50% of the leaves were not judged"),
        ({"zero_variance": 1.0, "reward_mean": 0.0}, "no gradient"),
        ({"verdicts": {"unparsed": 6, "wrong": 2}}, "75% of the answers could not be read"),
        ({"truncated": 0.8}, "80% of the answers were cut"),
        ({"ess": 0.2}, "effective sample size is 20%"),
        ({"reward_mean": lambda step: 0.6 - 0.012 * step}, "the mean reward fell from 0.55 to 0.16"),
        ({"entropy_mean": lambda step: 2.0 / step**2}, "entropy of a token fell"),
        ({"dropped": lambda step: {"stale": step, "no_prompt": 0}}, "20 forests were dropped and 20 admitted"),
    ],
)
def test_fault_is_an_alarm_alone(changes: dict[str, Any], what: str) -> None:
    (found,) = alarms(records(**changes))
    assert what in found.what and found.remedy


@pytest.mark.parametrize(
    "changes",
    [
        {"nonfinite_updates": lambda step: int(step == 1)},  # the update is before the last steps
        {"dropped": lambda step: {"no_variance": step}},  # queue.mixed_only causes these drops
        {"dropped": {"stale": 900}},  # before the last steps
        {"verdicts": {"verified": 95, "timeout": 5}},
    ],
)
def test_what_is_over_or_asked_for_is_no_alarm(changes: dict[str, Any]) -> None:
    assert alarms(records(**changes)) == []


@pytest.mark.parametrize(
    ("changes", "local", "what"),
    [
        ({"seconds": {"wait": 10.0}}, False, "the learner waits 80% of the time"),
        ({"seconds": {"wait": 10.0}}, True, "growing and grading forests takes 80% of the time"),
        ({"generator_busy_s": 5.0}, False, "the engines decode 20% of the time"),
        ({"zero_variance": 0.75}, False, "75% of the forests have equal rewards"),
        ({"sharing": 0.01}, True, "forests share 1% of their tokens"),
        ({"truncated": 0.25}, True, "25% of the answers are cut"),
    ],
)
def test_waste_is_advice_alone(changes: dict[str, Any], local: bool, what: str) -> None:
    found = records(**changes)
    assert alarms(found) == []
    (told,) = advice(found, RUN, local)
    assert what in told.what and told.remedy


def test_records_of_an_earlier_release_give_no_error() -> None:
    old = [{"step": s, "elapsed_s": 1.0 * s, "reward_mean": 0.5, "leaves": 8} for s in range(1, 31)]
    assert alarms(old) == []
    assert advice(old, RUN, True)


def test_remedies_name_fields_that_exist() -> None:
    from re import findall

    with open(health.__file__) as f:
        named = findall(r"\b(?:learner|sampling|queue|generator|reward|task)\.\w+", f.read())
    assert len(set(named)) > 10
    assert set(named) <= {key for key, _, _ in describe()} | {"task.families"}
