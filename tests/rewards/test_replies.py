"""Tests the replies of a verifier's process: every reply that is no grade is refused, so that it costs its answer."""

from __future__ import annotations

import asyncio

import pytest

from treeadv.rewards.judgement import from_message
from treeadv.rewards.sandbox.frames import BadFrame, receive_frame

GRADE = {"verdict": "WRONG", "reward": 0.0, "detail": "", "parts": {}}


@pytest.mark.parametrize(
    "change",
    [
        {"parts": 3},
        {"parts": None},
        {"parts": [["a", 1]]},
        {"reward": "x"},
        {"reward": [1]},
        {"verdict": -1},
        {"more": 1},
    ],
)
def test_message_of_another_form_is_refused(change: dict) -> None:
    with pytest.raises(ValueError, match=r"not a grade|not an|unknown|not a finite"):
        from_message(GRADE | change)


def test_parts_change_neither_reward_nor_verdict() -> None:
    grade = from_message(GRADE | {"parts": {"reward": 1.0, "verdict": "VERIFIED"}})
    assert (grade.verdict.name, grade.reward) == ("WRONG", 0.0)


@pytest.mark.parametrize("body", [b"[" * 200_000, b"{", b"\xff", b"9" * 5000, b"[]"])
def test_reply_that_is_no_object_is_refused(body: bytes) -> None:
    async def receive() -> None:
        stream = asyncio.StreamReader()
        stream.feed_data(b"treeadv id %d\n" % len(body) + body)
        await receive_frame(stream, "id")

    with pytest.raises(BadFrame, match="the reply is not"):
        asyncio.run(receive())
