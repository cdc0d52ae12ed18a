"""The application of a journal to a ledger, record by record. The queue starts again in this way, and readers follow
a run in this way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from treeadv.errors import BadInput, one_line
from treeadv.replay.journal import Line, Reader, TornRecord
from treeadv.replay.ledger import LawBroken, LeaseLost, Ledger
from treeadv.visible import visible_logger

log = visible_logger("treeadv.replay")
IMPOSSIBLE = (KeyError, ValueError, LawBroken, LeaseLost)


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """The result of opening the queue.

    It holds the number of records, the duration in seconds, the torn last record that was cut off, and the number of
    journal parts with records of a process that had lost the run."""

    records: int
    seconds: float
    torn: TornRecord | None
    ignored: int

    def warn(self, run: str) -> None:
        """Log what the queue cut off or ignored when it opened `run`."""
        if self.torn:
            where = f"{self.torn.part_name} byte {self.torn.offset}, {self.torn.lost} bytes"
            log.warning("%s: the incomplete last record of the journal was cut off: %s", run, where)
        if self.ignored:
            log.warning(
                "%s: ignored records of a process that had lost the run, in %d journal parts", run, self.ignored
            )


def recover(reader: Reader, ledger: Ledger) -> Iterator[Line]:
    """Apply each record to the ledger, then yield the record.

    Raises `BadInput` for a record that contradicts the records before it, because no queue writes such a record."""
    for line in reader:
        try:
            ledger.apply(line.record)
        except IMPOSSIBLE as e:
            raise impossible(reader.seq, e) from e
        yield line


def impossible(seq: int, error: Exception) -> BadInput:
    """Return the error for record `seq`, which the ledger refuses."""
    what = f"{type(error).__name__} {one_line(error)}"
    return BadInput(f"record {seq} contradicts the records before it: {what}; restore the journal from a backup")
