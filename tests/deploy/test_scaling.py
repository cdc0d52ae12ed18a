"""Tests the state machine that sets the number of generators: bounds, durations, and a closed loop with a simulated
queue."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from actors.driver.scaling_policy import Observation, ScalingState, direction_of
from treeadv.config import ScalingConfig

RULES = ScalingConfig(enabled=True, min=1, max=5, min_duration=10.0, cooldown=20.0)
WAITING = Observation(now=0.0, count=2, ready=0, need=4, slots_free=6, wait_share=0.8, staleness=0, bound=2)
FULL = Observation(now=0.0, count=2, ready=9, need=4, slots_free=0, wait_share=0.0, staleness=2, bound=2)
BALANCED = Observation(now=0.0, count=2, ready=5, need=4, slots_free=3, wait_share=0.1, staleness=1, bound=2)

observations = st.lists(
    st.builds(
        Observation,
        now=st.floats(0.1, 40.0),  # seconds since the previous observation; the test sums them
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


def follow(state: ScalingState, seen: Observation, until: float, every: float = 5.0) -> list[ScalingState]:
    """Return the states under one constant observation. Actors start and end without delay."""
    states = [state]
    now = seen.now
    while now < until:
        now += every
        states.append(states[-1].observe(replace(seen, now=now, count=states[-1].target), RULES))
    return states


@given(st.integers(0, 9), observations)
def test_bounds_and_cooldown_apply_to_any_observations(count: int, steps: list[Observation]) -> None:
    now = 0.0
    states = [ScalingState.start(count, now, RULES)]
    changes = [now]
    for seen in steps:
        now += seen.now
        states.append(states[-1].observe(replace(seen, now=now), RULES))
        if states[-1].target != states[-2].target:
            changes.append(now)
    assert all(RULES.min <= s.target <= RULES.max for s in states)
    assert all(abs(a.target - b.target) <= 1 for a, b in pairwise(states))
    assert all(b - a >= RULES.cooldown for a, b in pairwise(changes))


@given(observations)
def test_target_changes_only_after_min_duration(steps: list[Observation]) -> None:
    now = 0.0
    state = ScalingState.start(3, now, RULES)
    history: list[tuple[float, int]] = []
    for seen in steps:
        now += seen.now
        seen = replace(seen, now=now)
        after = state.observe(seen, RULES)
        mean = seen.wait_share
        if state.wait_share is not None and seen.count == state.target:
            kept = math.exp((state.observed - now) / RULES.min_duration)
            mean = state.wait_share * kept + seen.wait_share * (1 - kept)
        history.append((now, direction_of(replace(seen, wait_share=mean), RULES)))
        if (moved := after.target - state.target) != 0:
            others = [at for at, direction in history if direction != moved]
            first = min(at for at, _ in history if not others or at > others[-1])
            assert now - first >= RULES.min_duration
        state = after


def test_waiting_learner_adds_and_full_queue_removes_generators() -> None:
    up = follow(ScalingState.start(1, 0.0, RULES), WAITING, until=200.0)
    assert [s.target for s in up][-1] == RULES.max
    down = follow(ScalingState.start(5, 0.0, RULES), FULL, until=200.0)
    assert [s.target for s in down][-1] == RULES.min


@pytest.mark.parametrize("period", [10.0, 20.0, 60.0, 200.0])
def test_learner_that_waits_in_half_of_each_step_gets_generators(period: float) -> None:
    """The observations of a step say in turn that the learner waits all the time and that it never waits."""
    state = ScalingState.start(1, 0.0, RULES)
    for tick in range(1, 200):
        now = 5.0 * tick
        share = 1.0 if (now - 2.5) % period < period / 2 else 0.0
        seen = replace(WAITING, now=now, count=state.target, wait_share=share, ready=0 if share else 3)
        state = state.observe(seen, RULES)
    assert state.target == RULES.max


def test_short_pause_of_waiting_removes_no_generator() -> None:
    """The learner waits in two thirds of a step; while it computes, forests fill the queue."""
    state = ScalingState.start(3, 0.0, RULES)
    for tick in range(1, 200):
        now = 5.0 * tick
        phase = replace(WAITING, slots_free=0) if tick % 9 < 6 else FULL
        state = state.observe(replace(phase, now=now, count=state.target), RULES)
    assert state.target == 3


def test_target_is_constant_between_the_thresholds() -> None:
    assert {s.target for s in follow(ScalingState.start(3, 0.0, RULES), BALANCED, until=1000.0)} == {3}


@pytest.mark.parametrize(
    ("low", "high", "direction"), [(0.05, 0.2, 0), (0.05, 0.09, 1), (0.11, 0.2, -1), (0.0, 1.0, 0)]
)
def test_thresholds_are_those_of_the_options(low: float, high: float, direction: int) -> None:
    rules = ScalingConfig(wait_low=low, wait_high=high)
    seen = replace(WAITING if direction > 0 else FULL, wait_share=0.1)
    assert direction_of(seen, rules) == direction


def test_crossed_thresholds_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"scaling.wait_low=0.3 must be below scaling.wait_high=0.2"):
        ScalingConfig(wait_low=0.3)


def test_no_generator_is_added_at_the_staleness_bound() -> None:
    held_back = replace(WAITING, slots_free=0)
    assert {s.target for s in follow(ScalingState.start(3, 0.0, RULES), held_back, until=1000.0)} == {3}


def test_next_change_waits_for_the_actors_of_the_previous() -> None:
    state = ScalingState.start(1, 0.0, RULES)
    for now in range(0, 1000, 5):
        state = state.observe(replace(WAITING, now=float(now), count=1), RULES)  # the second generator never starts
    assert state.target == 2


def test_request_applies_at_once_and_starts_a_cooldown() -> None:
    state = ScalingState.start(1, 0.0, RULES).set_target(9, 3.0, RULES)
    assert state.target == RULES.max
    flooded = follow(state, replace(FULL, now=3.0), until=18.0)
    assert {s.target for s in flooded} == {RULES.max}


def test_narrower_bounds_apply_at_the_next_observation() -> None:
    state = ScalingState.start(5, 0.0, RULES)
    assert state.observe(replace(BALANCED, now=1.0, count=5), RULES.model_copy(update={"max": 2})).target == 2


@given(st.floats(0.6, 3.4), st.integers(1, 5))
def test_simulated_queue_settles_without_oscillation(demand: float, first: int) -> None:
    """The learner consumes the output of `demand` generators from a buffer of 12 forests. After the transient the
    target has at most two neighbouring values, which keep the learner busy if the bounds allow it."""
    need, room, dt = 4, 12, 5.0
    rate = 0.2  # forests per second of a generator
    state = ScalingState.start(first, 0.0, RULES)
    ready, seen = 0.0, []
    for tick in range(1, 601):
        made = min(state.target * rate * dt, room - ready)
        used = min(demand * rate * dt, ready + made)
        ready += made - used
        wait = 1.0 - used / (demand * rate * dt)
        now = tick * dt
        observed = Observation(
            now=now,
            count=state.target,
            ready=round(ready),
            need=need,
            slots_free=0 if ready >= room - 0.5 else 3,
            wait_share=wait,
            staleness=1,
            bound=2,
        )
        state = state.observe(observed, RULES)
        seen.append(state.target)
    settled = seen[len(seen) // 2 :]
    assert max(settled) - min(settled) <= 1
    assert max(settled) >= min(demand * (1 - RULES.wait_high), RULES.max)
