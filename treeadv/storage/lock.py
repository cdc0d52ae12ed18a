"""The lock of a run, in the run's folder `replay`. Only the process that holds the lock writes the run."""

from __future__ import annotations

import fcntl
import math
import os
import re
from pathlib import Path
from typing import NamedTuple, Protocol

from treeadv.disk import writing
from treeadv.errors import BadInput


class Owner(NamedTuple):
    """The session that opened a run last, and the step of the checkpoint from which this session resumed.

    The value is ("", inf) for a lock that does not record a session."""

    session: str
    step: float


class Lock(Protocol):
    """A lock that allows only one process to write a run."""

    def check(self) -> None:
        """Raise `BadInput` if another process has locked the run later."""
        ...

    def undo(self) -> None:
        """Restore the lock of the previous owner after the run could not be opened."""
        ...

    def release(self) -> None:
        """Release the lock."""
        ...


class LocalLock:
    """A file lock. The kernel releases the lock when the process ends, even after a kill."""

    def __init__(self, folder: Path) -> None:
        """Take the lock. Raises `BadInput` if another process holds the lock."""
        with writing(folder / "lock"):
            self._handle: int | None = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            holder = os.read(self._handle, 64).decode(errors="replace") or "another process"
            os.close(self._handle)
            raise BadInput(f"{folder} is in use by {holder}; stop that run or choose another run.name") from e
        except OSError as e:
            os.close(self._handle)
            raise BadInput(
                f"{folder / 'lock'}: cannot be locked ({e.strerror}); choose a run.root whose file system has locks"
            ) from e
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


def in_use(run: Path) -> bool:
    """Return whether a process of this machine holds a lock of a run. The run's driver and its queue each hold a lock.

    The function reads the kernel's table of locks and takes no lock. So it does not disturb a driver that starts at
    the same time. The result is False on a system without this table."""
    table = Path("/proc/locks")
    if not table.is_file():
        return False
    locked = {word for line in table.read_text().splitlines() for word in line.split()}
    return any(_place(lock) in locked for lock in (run / "lock", run / "replay" / "lock") if lock.is_file())


def _place(lock: Path) -> str:
    """Return the device and the inode of a file in the form of the kernel's table."""
    at = lock.stat()
    return f"{os.major(at.st_dev):02x}:{os.minor(at.st_dev):02x}:{at.st_ino}"


class OwnedFolder(Protocol):
    """A folder that records the session that opened the run last."""

    uri: str

    def owner(self) -> Owner: ...


class StoredLock(OwnedFolder, Protocol):
    """A folder that stores the lock as an object."""

    def lock_bytes(self) -> bytes: ...

    def write_whole(self, name: str, data: bytes) -> None: ...


class ObjectLock:
    """A lock in an object store. It is an object that names the session that opened the run last.

    An object store cannot release a lock when a process ends. So the last process that opens a run owns the run. The
    previous owner may still run, for example a driver that seemed dead or a pod in its grace period. It calls
    `check` before each write and stops."""

    def __init__(self, folder: StoredLock, session: str, step: int) -> None:
        """Write the lock. Raises `BadInput` if a later session has opened the run."""
        self._folder, self._session = folder, session
        if folder.owner().session >= session:
            raise BadInput(
                f"{folder.uri}: another process opened this run at the same time; start again if no other process runs"
            )
        self._before = folder.lock_bytes()
        folder.write_whole("lock", f"{session} {step}".encode())

    def check(self) -> None:
        refuse_other_owner(self._folder, self._session)

    def undo(self) -> None:
        if self._folder.owner().session == self._session:
            self._folder.write_whole("lock", self._before)

    def release(self) -> None:
        pass  # the lock keeps the name of the last owner until another session opens the run


def parse_lock(text: bytes) -> Owner:
    """Return the owner that the bytes of a lock object name."""
    match = re.fullmatch(rb"(\d{6}-\w+) (\d+)", text)
    return Owner(match[1].decode(), int(match[2])) if match else Owner("", math.inf)


def refuse_other_owner(folder: OwnedFolder, session: str) -> None:
    """Raise `BadInput` unless `session` opened the run last."""
    if folder.owner().session != session:
        raise BadInput(f"{folder.uri}: another process has opened this run and continues it; this process stops")
