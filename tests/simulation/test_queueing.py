"""Compares simulated runs with exact results of queueing theory."""

from __future__ import annotations

import pytest

from benchmarks.simulation.figures import figures
from benchmarks.simulation.model import Simulation
from tests.simulation.runs import TOKEN, ExponentialLearner, ExponentialLengths, queue_network

STEPS, SKIP = 1000, 100


def simulate(slots: int, generators: int, ratio: float) -> dict:
    """Simulate exponential generators and an exponential learner of mean 1 s. `ratio` is the rate of one generator over
    the rate of the learner."""
    lengths = ExponentialLengths(seed=1, median=1 / ratio / TOKEN, longest=10**9)
    service = ExponentialLearner(step=TOKEN, learner=1.0)
    return figures(Simulation(queue_network(slots, generators, STEPS), service, lengths).run(), SKIP)


@pytest.mark.parametrize(("slots", "ratio"), [(1, 1.0), (3, 0.5), (3, 2.0)])
def test_one_generator_equals_the_closed_network(slots: int, ratio: float) -> None:
    """K slots circulate between two exponential servers, so the number of forests at the learner is geometric on 0 to
    K (Gordon and Newell 1967). The learner works with probability 1 - p(0)."""
    found = simulate(slots, 1, ratio)
    weights = [ratio**k for k in range(slots + 1)]
    works = 1 - weights[0] / sum(weights)
    idle = weights[-1] / sum(weights)
    assert found["forests_per_s"] == pytest.approx(works, rel=0.08)
    assert 1 - found["learner_wait"] == pytest.approx(works, abs=0.05)
    assert found["generator_idle"] == pytest.approx(idle, abs=0.05)
    assert found["stale_share"] == 0  # with one server in order no forest is overtaken


@pytest.mark.parametrize(("generators", "ratio"), [(3, 0.2), (3, 1.0)])
def test_many_slots_give_the_smaller_of_both_rates(generators: int, ratio: float) -> None:
    found = simulate(60, generators, ratio)
    assert found["forests_per_s"] == pytest.approx(min(generators * ratio, 1.0), rel=0.08)
    assert found["saturated"] == ("learner" if generators * ratio > 1 else "generators")
