"""Who may write a run: the lock in its folder `replay`, and the sessions, one a start of a run in an object store."""

from __future__ import annotations

import fcntl
import math
import os
import re
import uuid
from collections.abc import Iterable

from treeadv.errors import BadInput
from treeadv.storage.folder import Folder


def next_session(replay: Folder, known: Iterable[str] = ()) -> str:
    """A name for the next start of a run in an object store. They sort in the order of the starts; `known` are some more of earlier
    ones."""
    known = [owner(replay)[0], *known, *(session_in(n) for n in replay.child("journal").sizes(".jsonl"))]
    return f"{int(max(known).partition('-')[0] or 0) + 1:06d}-{uuid.uuid4().hex[:8]}"


def session_in(name: str) -> str:
    """The session in the name of a part of the journal, `0000000007-000002-1f2e3d4c.jsonl`; "" for one of a local disk."""
    return name.partition(".")[0].partition("-")[2]


def owner(replay: Folder) -> tuple[str, float]:
    """The session that opened a run in an object store last, and the step that it went on from; ("", inf) if nobody knows: there is no
    lock, or an older release wrote it."""
    said = re.fullmatch(rb"(\d{6}-\w+) (\d+)", _lock(replay))
    return (said[1].decode(), int(said[2])) if said else ("", math.inf)


def _lock(replay: Folder) -> bytes:
    try:
        return replay.read("lock").to_pybytes()
    except FileNotFoundError:
        return b""


class Lock:
    """Only one process may write a run. A local folder is locked until that process ends, however it ends.

    An object store has no such lock: there whoever opens the run last has it, and the one before (a driver that was taken for dead, a
    pod in its grace period) finds that out by the `sync` that goes before each object of the journal and each deletion.
    """

    def __init__(self, folder: Folder, session: str, step: int) -> None:
        self._fd: int | None = None
        self._folder, self._session = folder, session
        if folder.local is None:
            if owner(folder)[0] >= session:
                raise BadInput(f"{folder.uri}: another process has opened this run at the same moment; see which goes on, or start again")
            self._before = _lock(folder)
            folder.write_whole("lock", f"{session} {step}".encode())
            return
        self._fd = os.open(folder.local / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            holder = os.read(self._fd, 64).decode() or "another process"
            os.close(self._fd)
            raise BadInput(f"{folder.uri}: in use by {holder}; stop that run or choose another run.name") from e
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"process {os.getpid()}".encode(), 0)

    def sync(self) -> None:
        """`BadInput` if the run is another's by now."""
        hold(self._folder, self._session)

    def undo(self) -> None:
        """The run could not be opened: it is again whose it was."""
        if self._folder.local is None and owner(self._folder)[0] == self._session:
            self._folder.write_whole("lock", self._before)
        self.release()

    def release(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def hold(replay: Folder, session: str) -> None:
    """`BadInput` if another session has opened the run in an object store since. A local folder is locked."""
    if replay.local is None and owner(replay)[0] != session:
        raise BadInput(f"{replay.uri}: another process has opened this run and goes on with it; this one stops")
