"""Tests the cache of draws. A retry may ask for a draw that is much older than the newest draws."""

from __future__ import annotations

import asyncio
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from treeadv.data.problems import Problem
from treeadv.replay.draws import _KEPT, Draws


class Counting:
    """A source that counts the calls for each draw."""

    def __init__(self) -> None:
        self.calls: Counter[int] = Counter()

    def __getitem__(self, draw: int) -> Problem:
        self.calls[draw] += 1
        return Problem(id=str(draw), problem="1+1", answer="2", verifier="math", meta="")


async def asked(source: Counting, order: list[int]) -> list[str]:
    draws = Draws(source)
    found = [await draws.problem(draw) for draw in order]
    draws.close()
    return [problem.id for problem in found if isinstance(problem, Problem)]


def test_draw_older_than_the_cached_ones_is_found_again() -> None:
    source = Counting()
    order = [*range(3 * _KEPT), 5, 5, 3 * _KEPT - 1]
    assert asyncio.run(asked(source, order)) == [str(n) for n in order]
    assert source.calls[5] == 2 and source.calls[3 * _KEPT - 1] == 1  # the retry is cached, and so are the newest


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 200), max_size=200))
def test_any_order_of_draws_gets_its_problems(order: list[int]) -> None:
    assert asyncio.run(asked(Counting(), order)) == [str(n) for n in order]


def test_concurrent_calls_for_a_draw_ask_the_source_once() -> None:
    source = Counting()

    async def run() -> None:
        draws = Draws(source)
        await asyncio.gather(*(draws.problem(n % 3) for n in range(30)))
        draws.close()

    asyncio.run(run())
    assert source.calls == {0: 1, 1: 1, 2: 1}
