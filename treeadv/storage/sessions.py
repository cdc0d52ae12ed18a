"""The names of a run's sessions in an object store. Each start of the run is a session."""

from __future__ import annotations

import uuid
from collections.abc import Iterable

from treeadv.storage.folder import Folder


def next_session(replay: Folder, known: Iterable[str] = ()) -> str:
    """Return the session of the next start of a run in an object store. Sessions sort in the order of the starts.

    `known` are sessions of earlier starts that may have no file in the replay folder.
    """
    journal = replay.child("journal").sizes(".jsonl")
    last = max([replay.owner().session, *known, *(session_in(name) for name in journal)])
    return f"{int(last.partition('-')[0] or 0) + 1:06d}-{uuid.uuid4().hex[:8]}"


def session_in(name: str) -> str:
    """Return the session in a file name such as `0000000007-000002-1f2e3d4c.jsonl`; "" for a file on a local disk."""
    return name.partition(".")[0].partition("-")[2]
