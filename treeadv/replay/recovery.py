"""Applies a journal to a ledger, record by record: how the queue starts again, and how readers follow a run."""

from __future__ import annotations

from collections.abc import Iterator

from treeadv.errors import BadInput, one_line
from treeadv.replay.journal import Line, Reader
from treeadv.replay.ledger import LawBroken, LeaseLost, Ledger

IMPOSSIBLE = (KeyError, ValueError, LawBroken, LeaseLost)


def recover(reader: Reader, ledger: Ledger) -> Iterator[Line]:
    """Apply each record to the ledger, then yield it.

    Raises `BadInput` for a record that contradicts the records before it: no queue has written it there.
    """
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
