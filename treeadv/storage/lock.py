"""Who may write a run: the lock in its folder `replay`."""

from __future__ import annotations

import fcntl
import math
import os
import re
from pathlib import Path
from typing import NamedTuple, Protocol

from treeadv.errors import BadInput
from treeadv.storage.disk import writing


class Owner(NamedTuple):
    """The session that opened a run last, and the step of the checkpoint that it resumed from.

    ("", inf) where the lock does not tell.
    """

    session: str
    step: float


class Lock(Protocol):
    """Lets one process write a run."""

    def check(self) -> None:
        """Raise `BadInput` if another process has taken the run since."""
        ...

    def undo(self) -> None:
        """Give the run back to the owner before, because it could not be opened."""
        ...

    def release(self) -> None:
        """Give the run up."""
        ...


class LocalLock:
    """A file lock, which the kernel releases when the process ends, however it ends."""

    def __init__(self, folder: Path) -> None:
        """Raises `BadInput` if another process holds the lock."""
        with writing(folder / "lock"):
            self._handle: int | None = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            holder = os.read(self._handle, 64).decode() or "another process"
            os.close(self._handle)
            raise BadInput(f"{folder}: in use by {holder}; stop that run or choose another run.name") from e
        with writing(folder / "lock"):
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, f"process {os.getpid()}".encode(), 0)

    def check(self) -> None:
        pass

    def undo(self) -> None:
        self.release()

    def release(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


class OwnedFolder(Protocol):
    """A folder that knows which session opened the run last."""

    uri: str

    def owner(self) -> Owner: ...


class StoredLock(OwnedFolder, Protocol):
    """A folder that keeps the lock as an object."""

    def lock_bytes(self) -> bytes: ...

    def write_whole(self, name: str, data: bytes) -> None: ...


class ObjectLock:
    """An object that names the session which opened the run last.

    An object store has no lock that ends with its process. Whoever opens a run last owns it. The process before (a
    driver that was taken for dead, a pod in its grace period) calls `check` before each write and stops.
    """

    def __init__(self, folder: StoredLock, session: str, step: int) -> None:
        """Raises `BadInput` if a later session has opened the run."""
        self._folder, self._session = folder, session
        if folder.owner().session >= session:
            raise BadInput(
                f"{folder.uri}: another process opened this run at the same moment; start again if none runs"
            )
        self._before = folder.lock_bytes()
        folder.write_whole("lock", f"{session} {step}".encode())

    def check(self) -> None:
        refuse_other_owner(self._folder, self._session)

    def undo(self) -> None:
        if self._folder.owner().session == self._session:
            self._folder.write_whole("lock", self._before)

    def release(self) -> None:
        pass  # the lock names the last owner until another session opens the run


def parse_lock(text: bytes) -> Owner:
    """Return the owner that a lock object names."""
    match = re.fullmatch(rb"(\d{6}-\w+) (\d+)", text)
    return Owner(match[1].decode(), int(match[2])) if match else Owner("", math.inf)


def refuse_other_owner(folder: OwnedFolder, session: str) -> None:
    """Raise `BadInput` unless `session` opened the run last."""
    if folder.owner().session != session:
        raise BadInput(f"{folder.uri}: another process has opened this run and goes on with it; this one stops")
