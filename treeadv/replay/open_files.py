"""The files of an open replay queue, and their flush. One flush makes all records since the last flush durable."""

from __future__ import annotations

import time
from collections.abc import Callable

from treeadv.config import QueueConfig
from treeadv.replay.journal import Journal, Reader
from treeadv.replay.ledger import Ledger
from treeadv.replay.payloads import Payloads
from treeadv.replay.records import Record, Snapshot
from treeadv.replay.recovery import Opening, recover
from treeadv.storage.folder import Action, Folder, flush


class OpenFiles:
    """The lock, the journal and the payload files of a replay folder, and the ledger that the journal describes."""

    def __init__(
        self, folder: Folder, config: QueueConfig, *, session: str, step: int, clock: Callable[[], float]
    ) -> None:
        """Lock `folder` for `session` and read its journal. `step` is the step of the checkpoint to resume from.

        Raises `BadInput` for a folder in use, damage or another format. The lock is then as before."""
        began = time.perf_counter()
        self.folder, self.ledger = folder, Ledger()
        self._clock, self._flushes = clock, config.fsync != "none"
        journals, payloads = folder.child("journal"), folder.child("payloads")
        journals.make()
        payloads.make()
        self.lock = folder.lock(session, step)
        try:
            reader = Reader(journals)
            for _ in recover(reader, self.ledger):
                pass
            self.payloads = Payloads(payloads, config.payload_mb << 20, self._flushes, session)
            self.payloads.flush_existing(self._needed())  # runs before the journal flushes the records about them
            self.journal = Journal(journals, reader, session, self.lock.check)
        except BaseException:
            self.lock.undo()
            raise
        self.opening = Opening(
            records=reader.seq, seconds=time.perf_counter() - began, torn=reader.torn, ignored=reader.ignored
        )

    def write(self, *records: Record) -> None:
        """Write records in one piece, then apply them in order."""
        if records:
            self.journal.append(records, self._clock())
        for record in records:
            self.ledger.apply(record)

    def pending(self) -> list[Action]:
        """Return the actions that make every record durable. One flush serves all waiting callers (group commit)."""
        payloads, journal = self.payloads.pending(), self.journal.pending()
        return [*payloads, self.lock.check, *journal] if journal else payloads

    def unneeded(self) -> list[str]:
        """Return the payload files that hold only finished forests."""
        return self.payloads.unneeded(self._needed())

    def compaction(self, unneeded: list[str], journal_limit: int, *, keep: bool) -> list[Action]:
        """Return the actions that flush, delete the payload files `unneeded`, and write a snapshot if the journal has
        grown by more than `journal_limit` bytes since the last one. With `keep` the records before it stay."""
        over = self.journal.size - self.journal.base > journal_limit
        if not unneeded and not over:
            return []
        deletion = [self.payloads.deletion(unneeded, self.lock.check)] if unneeded else []
        pending = self.pending()
        snapshot = self.journal.snapshot(Snapshot(ledger=self.ledger.to_state()), self._clock(), keep) if over else []
        return [*pending, *deletion, *snapshot]

    @property
    def records(self) -> int:
        """Return the number of journal records since the start of the run."""
        return self.journal.seq

    def disk_bytes(self) -> int:
        """Return the size of the journal and of the payload files in bytes."""
        return self.journal.disk_bytes + self.payloads.size

    def close(self) -> None:
        """Make all records durable, unless queue.fsync is none, and release the folder."""
        if self._flushes:
            flush(self.pending())
        self.payloads.close()
        self.journal.close()
        self.lock.release()

    def _needed(self) -> set[str]:
        """Return the payload files that contain an unfinished forest."""
        return {e.admitted.payload_file for e in self.ledger.live.values() if e.admitted}
