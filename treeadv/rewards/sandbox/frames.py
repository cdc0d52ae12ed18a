"""Reads and writes messages (frames) on the stream between a verifier process and its parent.

A frame is a line "treeadv ID LENGTH" and LENGTH bytes of JSON. ID is the secret id of the task that the message
answers. Other output on the stream does not contain this id and is refused."""

from __future__ import annotations

import asyncio
import json
from typing import Any, BinaryIO

from treeadv.jsonl import JsonObject

MAX_LINE = 128  # bytes of the first line
MAX_BYTES = 1 << 20  # largest size of a reply
START_ID = "start"  # id of the message that a process sends after its start
_START = b"treeadv"


class BadFrame(Exception):
    """The stream contains something that is not a message of the task. The message says what."""


def write_frame(stream: BinaryIO, task_id: str, message: object) -> None:
    stream.write(frame(task_id, message))
    stream.flush()


def frame(task_id: str, message: object) -> bytes:
    body = json.dumps(message).encode()
    return b"%s %s %d\n" % (_START, task_id.encode(), len(body)) + body


def read_frame(stream: BinaryIO) -> tuple[str, Any] | None:
    """Return the next (id, message), or None at the end of the stream.

    Only the parent writes to this stream, so the size is not limited."""
    line = stream.readline()
    if not line:
        return None
    _, task_id, length = line.split()
    return task_id.decode(), json.loads(stream.read(int(length)))


async def receive_frame(stream: asyncio.StreamReader, task_id: str) -> JsonObject:
    """Return the next message, which must have the id of this task.

    Raises `BadFrame`, or `asyncio.IncompleteReadError` at the end of the stream."""
    try:
        line = await stream.readuntil(b"\n")
    except asyncio.LimitOverrunError as e:
        raise BadFrame("the verifier's process wrote something else than a reply") from e
    start, _, rest = line.partition(b" ")
    found_id, _, length = rest.strip().partition(b" ")
    if len(line) > MAX_LINE or start != _START or found_id != task_id.encode() or not length.isdigit():
        raise BadFrame("the verifier's process wrote something else than a reply")
    if int(length) > MAX_BYTES:
        raise BadFrame(f"the reply has {int(length)} bytes; at most {MAX_BYTES} are allowed")
    try:
        message = json.loads(await stream.readexactly(int(length)))
    except (ValueError, RecursionError) as e:
        raise BadFrame(f"the reply is not JSON: {e}") from e
    if not isinstance(message, dict):
        raise BadFrame("the reply is not a JSON object")
    return message
