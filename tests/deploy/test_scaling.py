"""The scaling machine: bounds, patience, and a closed loop with a queue that it has to settle."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from actors.driver.scaling_policy import Observation, Scaler, leaning
from treeadv.config import ScalingConfig

RULES = ScalingConfig(enabled=True, min=1, max=5, hold=10.0, cooldown=20.0)
STARVED = Observation(now=0.0, count=2, ready=0, need=4, slots_free=6, wait_share=0.8, staleness=0, bound=2)
FLOODED = Observation(now=0.0, count=2, ready=9, need=4, slots_free=0, wait_share=0.0, staleness=2, bound=2)
BALANCED = Observation(now=0.0, count=2, ready=5, need=4, slots_free=3, wait_share=0.1, staleness=1, bound=2)

observations = st.lists(
    st.builds(
        Observation,
        now=st.floats(0.1, 40.0),  # as steps; made a clock below
        count=st.integers(0, 7),
        ready=st.integers(0, 12),
        need=st.integers(1, 6),
        slots_free=st.integers(0, 6),
        wait_share=st.floats(0.0, 1.0),
        staleness=st.integers(0, 4),
        bound=st.integers(0, 4),
    ),
    max_size=40,
)


def follow(scaler: Scaler, seen: Observation, until: float, every: float = 5.0) -> list[Scaler]:
    """The machine under one unchanging situation whose actors follow at once."""
    states = [scaler]
    now = seen.now
    while now < until:
        now += every
        states.append(states[-1].step(replace(seen, now=now, count=states[-1].wanted), RULES))
    return states


@given(st.integers(0, 9), observations)
def test_whatever_is_seen_bounds_single_steps_and_the_cooldown_hold(count: int, steps: list[Observation]) -> None:
    now = 0.0
    states = [Scaler.start(count, now, RULES)]
    changes = [now]
    for seen in steps:
        now += seen.now
        states.append(states[-1].step(replace(seen, now=now), RULES))
        if states[-1].wanted != states[-2].wanted:
            changes.append(now)
    assert all(RULES.min <= s.wanted <= RULES.max for s in states)
    assert all(abs(a.wanted - b.wanted) <= 1 for a, b in pairwise(states))
    assert all(b - a >= RULES.cooldown for a, b in pairwise(changes))


@given(observations)
def test_no_change_without_a_reason_that_lasted_for_the_hold(steps: list[Observation]) -> None:
    now = 0.0
    state = Scaler.start(3, now, RULES)
    history: list[tuple[float, int]] = []
    for seen in steps:
        now += seen.now
        seen = replace(seen, now=now)
        history.append((now, leaning(seen, RULES)))
        after = state.step(seen, RULES)
        if (moved := after.wanted - state.wanted) != 0:
            held = [at for at, lean in history if lean != moved]
            first = min(at for at, _ in history if not held or at > held[-1])
            assert now - first >= RULES.hold
        state = after


def test_a_starved_learner_raises_the_number_to_the_bound_and_a_flood_lowers_it() -> None:
    up = follow(Scaler.start(1, 0.0, RULES), STARVED, until=200.0)
    assert [s.wanted for s in up][-1] == RULES.max
    down = follow(Scaler.start(5, 0.0, RULES), FLOODED, until=200.0)
    assert [s.wanted for s in down][-1] == RULES.min


def test_between_the_thresholds_nothing_changes() -> None:
    assert {s.wanted for s in follow(Scaler.start(3, 0.0, RULES), BALANCED, until=1000.0)} == {3}


def test_a_learner_that_waits_behind_the_staleness_bound_gets_no_more_generators() -> None:
    held_back = replace(STARVED, slots_free=0)
    assert {s.wanted for s in follow(Scaler.start(3, 0.0, RULES), held_back, until=1000.0)} == {3}


def test_it_waits_for_the_actors_of_the_last_change_before_the_next() -> None:
    state = Scaler.start(1, 0.0, RULES)
    for now in range(0, 1000, 5):
        state = state.step(replace(STARVED, now=float(now), count=1), RULES)  # the second generator never comes up
    assert state.wanted == 2


def test_a_person_is_obeyed_at_once_within_the_bounds_and_then_the_cooldown_runs() -> None:
    state = Scaler.start(1, 0.0, RULES).ask(9, 3.0, RULES)
    assert state.wanted == RULES.max
    flooded = follow(state, replace(FLOODED, now=3.0), until=18.0)
    assert {s.wanted for s in flooded} == {RULES.max}


def test_narrower_bounds_hold_at_the_next_step() -> None:
    state = Scaler.start(5, 0.0, RULES)
    assert state.step(replace(BALANCED, now=1.0, count=5), RULES.model_copy(update={"max": 2})).wanted == 2


@given(st.floats(0.6, 3.4), st.integers(1, 5))
def test_a_simulated_queue_settles_and_does_not_swing(demand: float, first: int) -> None:
    """A learner that uses up what `demand` generators make, behind a buffer of 12 forests: after the transient the number takes at most
    two neighbouring values, and they keep the learner busy where the bounds allow it."""
    need, room, dt = 4, 12, 5.0
    rate = 0.2  # forests a second and generator
    state = Scaler.start(first, 0.0, RULES)
    ready, seen = 0.0, []
    for tick in range(1, 601):
        made = min(state.wanted * rate * dt, room - ready)
        used = min(demand * rate * dt, ready + made)
        ready += made - used
        wait = 1.0 - used / (demand * rate * dt)
        now = tick * dt
        observed = Observation(now, state.wanted, round(ready), need, 0 if ready >= room - 0.5 else 3, wait, 1, 2)
        state = state.step(observed, RULES)
        seen.append(state.wanted)
    settled = seen[len(seen) // 2 :]
    assert max(settled) - min(settled) <= 1
    assert max(settled) >= min(demand * (1 - RULES.wait_high), RULES.max)
