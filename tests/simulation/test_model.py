"""Tests that simulated runs keep the rules of a run: no forest is lost, seeds decide all, faults are survived."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.simulation.figures import figures, scaling_figures
from benchmarks.simulation.model import Simulation
from benchmarks.simulation.service import Lengths, Service
from tests.simulation.runs import small
from treeadv.replay.live import State

TIMES = {"step": 0.02, "row": 0.001, "learner_token": 0.002, "publish": 0.2, "queue": 0.002, "driver": 0.001}


def simulate(seed: int = 0, servers: int = 1, sharing: float = 0.2, failure: float = 0.0, **changes) -> Simulation:
    times = TIMES | ({"failure": failure, "start": 1.0} if failure else {})
    lengths = Lengths(seed=seed, median=20.0, longest=100)
    config = small(run__seed=seed, **changes)
    return Simulation(config, Service(**times), lengths, sharing=sharing, servers=servers).run()


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 10**6), count=st.integers(1, 5), staleness=st.integers(0, 3), servers=st.integers(1, 3),
    failure=st.sampled_from([0.0, 3.0, 20.0]), selection=st.sampled_from(["fifo", "freshest", "priority"]),
)  # fmt: skip
def test_every_forest_is_accounted_for(
    seed: int, count: int, staleness: int, servers: int, failure: float, selection: str
) -> None:
    s = simulate(
        seed, servers, failure=failure, generator__count=count, queue__max_staleness=staleness,
        queue__selection=selection,
    )  # fmt: skip
    ledger, ended = s.store.ledger, Counter(g.ended for g in s.growths.values())
    assert ended["trained"] == ledger.totals["trained", "forests"] == 6 * 3
    assert ended["stale"] == ledger.totals["stale", "forests"]
    assert ended["failed"] == ledger.lost["failed"]
    open_forests = len(ledger.in_state(State.READY)) + len(ledger.in_state(State.RESERVED))
    assert 0 <= open_forests - ended[""] <= s.store.capacity  # some are reserved, and not yet on their generator
    trained = [g.draw for g in s.growths.values() if g.ended == "trained"]
    assert len(trained) == len(set(trained))
    finished = sum(g.tokens for g in s.growths.values() if g.ended in ("trained", "stale"))
    assert finished <= s.marks[6]["drawn"] * (1 + 1e-9)


def test_equal_seeds_give_equal_runs_and_other_seeds_differ() -> None:
    first, again, other = (figures(simulate(seed, failure=5.0), 1) for seed in (3, 3, 4))
    assert first == again and first != other


def test_staleness_zero_takes_turns() -> None:
    """At staleness 0 generation and training exclude each other, so their shares of the time add up to 1."""
    s = simulate(queue__max_staleness=0, generator__count=1, sharing=0.0)
    first, last = s.marks[0], s.marks[6]
    worked = sum(last[name] - first[name] for name in ("wait", "learner", "publish", "checkpoint"))
    calls = 6 * TIMES["queue"]  # an ack is in none of the four
    assert worked + calls == pytest.approx(last["now"] - first["now"], rel=0.01)
    assert last["busy"] <= last["wait"] * (1 + 1e-9)


def test_failures_cost_attempts_and_the_run_ends() -> None:
    quiet, faulty = simulate(), simulate(failure=2.0)
    assert quiet.deaths == 0 and faulty.deaths > 0
    assert any(g.ended == "failed" for g in faulty.growths.values())
    assert faulty.step == quiet.step == 6 and faulty.env.now > quiet.env.now


def test_trees_stay_on_their_servers_and_leave_no_load() -> None:
    s = simulate(servers=3)
    growing = sum(not g.ended for g in s.growths.values())
    for member in s.all_members:
        assert sum(member.routes.loads().values()) <= 2 * growing  # two trees a forest
        assert all(e.tokens > 0 for e in member.engines.values())


def test_autoscaler_adds_generators_until_the_learner_works() -> None:
    """The learner needs about three generators. The target rises from one, and then stays within one of its end."""
    s = simulate(
        run__steps=400, scaling__enabled=True, scaling__min=1, scaling__max=8, scaling__interval=2.0,
        scaling__min_duration=6.0, scaling__cooldown=10.0, generator__count=1, generator__rows=4,
        generator__forests=1, queue__max_staleness=3,
    )  # fmt: skip
    found = scaling_figures(s)
    assert [n for _, n in s.targets[:2]] == [1, 2]
    assert 2 <= found["target"] <= 5 and found["target_high"] - found["target_low"] <= 1
