"""Tests the simulated engine against exact times."""

from __future__ import annotations

import pytest
import simpy
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.simulation.engine import Engine
from benchmarks.simulation.service import Service


def ends(engine: Engine, env: simpy.Environment, branches: list[tuple[float, int]]) -> list[float]:
    """Draw branches of (start, length) and return the times of their ends."""
    found = [0.0] * len(branches)

    def one(i: int, start: float, length: int):
        yield env.timeout(start)
        assert (yield engine.draw([length], lambda: None))
        found[i] = env.now

    for i, (start, length) in enumerate(branches):
        env.process(one(i, start, length))
    env.run()
    return found


@pytest.mark.parametrize(
    ("service", "rows", "branches", "times"),
    [
        (Service(step=1.0), 2, [(0.0, 10), (0.0, 20)], [10.0, 20.0]),
        (Service(step=1.0, row=1.0), 2, [(0.0, 10), (0.0, 20)], [30.0, 50.0]),
        (Service(step=1.0), 1, [(0.0, 10), (0.0, 20)], [10.0, 30.0]),
        (Service(step=1.0), 2, [(0.0, 10), (0.0, 20), (0.0, 5)], [10.0, 20.0, 15.0]),
        (Service(step=0.0, row=1.0), 2, [(0.0, 10), (4.0, 2)], [12.0, 8.0]),
    ],
)
def test_branches_end_at_exact_times(
    service: Service, rows: int, branches: list[tuple[float, int]], times: list[float]
) -> None:
    env = simpy.Environment()
    assert ends(Engine(env, service, rows), env, branches) == pytest.approx(times)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=20), st.integers(1, 6))
def test_work_is_conserved_whatever_the_rows(lengths: list[int], rows: int) -> None:
    """If the time of a step is in proportion to its branches, a token costs the same in any order."""
    env = simpy.Environment()
    engine = Engine(env, Service(step=0.0, row=0.5), rows)
    assert max(ends(engine, env, [(0.0, n) for n in lengths])) == pytest.approx(0.5 * sum(lengths))
    assert engine.tokens == pytest.approx(sum(lengths))
    assert engine.busy == pytest.approx(0.5 * sum(lengths)) and engine.free == rows


def test_pauses_delay_every_branch_by_their_length() -> None:
    env = simpy.Environment()
    engine = Engine(env, Service(step=1.0), 2)

    def pauses():
        yield env.timeout(3.5)
        engine.pause(2.0)
        yield env.timeout(1.0)
        engine.pause(2.0)  # overlaps: the engine draws again when both have ended

    env.process(pauses())
    assert ends(engine, env, [(0.0, 10), (0.0, 20)]) == pytest.approx([13.0, 23.0])


def test_end_of_the_engine_loses_running_and_waiting_branches() -> None:
    env = simpy.Environment()
    engine = Engine(env, Service(step=1.0), 1)
    groups = [engine.draw([5, 50], lambda: None), engine.draw([5], lambda: None)]

    def end():
        yield env.timeout(10)
        engine.end()

    env.process(end())
    env.run()
    assert [g.value for g in groups] == [False, False]
    assert engine.draw([1], lambda: None).value is False
