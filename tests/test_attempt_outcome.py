"""Tests the requests that end a run."""

from __future__ import annotations

import asyncio

from actors.driver.attempt_outcome import AttemptOutcome, EndRequest


def test_reshape_is_cleared_for_the_next_attempt() -> None:
    request = EndRequest()
    assert request.attempt_outcome is None
    request.reshape()
    assert request.attempt_outcome is AttemptOutcome.RESHAPE
    request.clear_reshape()
    assert request.attempt_outcome is None


def test_interrupt_has_priority_over_a_reshape_and_stays() -> None:
    request = EndRequest()
    request.reshape()
    request.interrupt()
    request.clear_reshape()
    assert request.attempt_outcome is AttemptOutcome.INTERRUPTED


def test_early_end_outranks_a_reshape_and_stays() -> None:
    request = EndRequest()
    request.reshape()
    request.end_early()
    request.clear_reshape()
    assert request.attempt_outcome is AttemptOutcome.EARLY
    request.interrupt()
    assert request.attempt_outcome is AttemptOutcome.INTERRUPTED


def test_each_request_ends_a_wait() -> None:
    async def waits(ask) -> None:
        request = EndRequest()
        waiting = asyncio.create_task(request.wait())
        await asyncio.sleep(0)
        assert not waiting.done()
        ask(request)
        await asyncio.wait_for(waiting, 1)

    asyncio.run(waits(EndRequest.reshape))
    asyncio.run(waits(EndRequest.interrupt))
    asyncio.run(waits(EndRequest.end_early))
