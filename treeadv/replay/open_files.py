"""The files of an open replay queue, and their flush. One flush makes all records since the last flush durable."""

from __future__ import annotations

from collections.abc import Callable

from treeadv.config import QueueConfig
from treeadv.replay.journal import Journal
from treeadv.replay.ledger import Ledger
from treeadv.replay.payloads import Payloads
from treeadv.replay.records import Record
from treeadv.storage.folder import Action, Folder, flush
from treeadv.storage.lock import Lock


class OpenFiles:
    """The base class of the queue. A subclass opens the files and sets the attributes."""

    ledger: Ledger
    _config: QueueConfig
    _clock: Callable[[], float]
    _folder: Folder
    _lock: Lock
    _journal: Journal
    _payloads: Payloads

    def pending(self) -> list[Action]:
        """Return the actions that make every record durable. One flush serves all waiting callers (group commit)."""
        payloads, journal = self._payloads.pending(), self._journal.pending()
        return [*payloads, self._lock.check, *journal] if journal else payloads

    def sync(self) -> None:
        flush(self.pending())

    def check_owner(self) -> None:
        """Raise `BadInput` if another process owns the run now."""
        self._lock.check()

    @property
    def records(self) -> int:
        """Return the number of journal records since the start of the run."""
        return self._journal.seq

    def disk_bytes(self) -> int:
        """Return the size of the journal and of the payload files in bytes."""
        return self._journal.disk_bytes + self._payloads.size

    def free_bytes(self) -> int | None:
        return self._folder.free_bytes()

    def close(self) -> None:
        """Make all records durable, unless queue.fsync is none, and release the folder."""
        if self._config.fsync != "none":
            self.sync()
        self._payloads.close()
        self._journal.close()
        self._lock.release()

    def _write(self, *records: Record) -> None:
        """Write records in one piece, then apply them in order."""
        if records:
            self._journal.append(records, self._clock())
        for record in records:
            self.ledger.apply(record)
