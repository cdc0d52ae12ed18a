"""Tests that the number of forests that a generator grows follows the free rows of its engine."""

from __future__ import annotations

import heapq

from actors.driver.in_flight import ForestsInFlight
from treeadv.config import Config, build

ROWS = 48


def configured(*overrides: str) -> Config:
    settings = ["sampling.leaves=8", "sampling.trees=2", "generator.forests=6"]
    return build({"task": {"source": "none.jsonl"}}, [*settings, *overrides], "test")


class Loops:
    """A counter of the started loops."""

    def __init__(self, *overrides: str) -> None:
        self.started = 0
        self.in_flight = ForestsInFlight(configured(*overrides), self.start)

    def start(self, in_flight: ForestsInFlight) -> None:
        self.started += 1


def test_free_rows_for_another_forest_start_a_loop():
    loops = Loops()
    assert loops.started == 6
    assert loops.in_flight.keeps_loop(free=2)
    assert loops.in_flight.keeps_loop(free=1)
    assert loops.started == loops.in_flight.loops == 7


def test_no_loop_is_started_while_one_waits_for_a_slot():
    loops = Loops()
    loops.in_flight.reserving = 1
    assert loops.in_flight.keeps_loop(free=40)
    assert loops.started == 6


def test_waiting_branches_end_every_loop_but_the_last():
    loops = Loops("generator.forests=2")
    assert loops.in_flight.keeps_loop(free=-8)
    assert not loops.in_flight.keeps_loop(free=-9)
    assert loops.in_flight.keeps_loop(free=-9)
    assert loops.in_flight.loops == 1


def test_forests_in_flight_fill_the_rows():
    """A forest has 2 branches at its start and 8 at its end, so six forests use 62 % of the rows."""
    now, number = 0.0, 0
    ends: list[tuple[float, int]] = []  # (time at which a forest ends, its number)
    used: list[int] = []

    def start(_: ForestsInFlight | None = None) -> None:
        nonlocal number
        heapq.heappush(ends, (now + 100 + number % 7, number))
        number += 1

    in_flight = ForestsInFlight(configured(), start)
    for _ in range(2000):
        now, _ = heapq.heappop(ends)
        rows = sum(2 + round(6 * (1 - max(0.0, end - now) / 110)) for end, _ in ends)
        used.append(min(rows, ROWS))
        if in_flight.keeps_loop(ROWS - rows):
            start()
    assert sum(used[-500:]) / 500 > 0.8 * ROWS
    assert 8 <= in_flight.loops <= 12
