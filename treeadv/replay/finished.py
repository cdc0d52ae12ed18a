"""Totals of the attempts that no later record can change. A reader of a journal keeps only these totals, so its
memory does not grow with the run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from treeadv.replay.ledger import UNITS
from treeadv.replay.records import Admitted, Dropped, Reserved


class NumberSet:
    """A set of numbers that fills up from `start`. It stores only the numbers after the first gap one by one."""

    def __init__(self, start: int = 0) -> None:
        self._start = self._end = start  # the set contains every number from _start to _end - 1
        self._others: set[int] = set()

    def __contains__(self, n: int) -> bool:
        return self._start <= n < self._end or n in self._others

    def add(self, n: int) -> bool:
        """Add a number. Returns False if the set already contains the number."""
        if n in self:
            return False
        self._others.add(n)
        while self._end in self._others:
            self._others.remove(self._end)
            self._end += 1
        return True


@dataclass(slots=True, kw_only=True)
class Finished:
    """The totals of the attempts and steps that are finished."""

    totals: Counter[tuple[str, str]] = field(default_factory=Counter)  # admitted forests by (state, unit)
    dropped: Counter[str] = field(default_factory=Counter)  # attempts by reason
    draws: NumberSet = field(default_factory=NumberSet)  # draws that get no other attempt
    steps: int = 0
    last_step: int = 0
    faults: list[str] = field(default_factory=list)

    def add(
        self,
        state: Literal["trained", "dropped"],
        reserved: Reserved,
        admitted: Admitted | None,
        dropped: Dropped | None,
    ) -> None:
        """Count an attempt that ended in `state`."""
        if admitted is not None:
            for unit, n in zip(UNITS, (1, admitted.leaves, admitted.tokens), strict=True):
                self.totals[state, unit] += n
        if dropped is not None:
            self.dropped[dropped.reason] += 1
        if (dropped is None or not dropped.refill) and not self.draws.add(reserved.draw):
            self.faults.append(f"draw {reserved.draw} has 2 states instead of 1")

    def end_steps(self, acks: Sequence[int], last: int) -> None:
        """Count the steps up to `last`, whose leases were acknowledged in the order `acks`."""
        self.faults += lease_faults(acks, self.last_step, last)
        self.steps += len(set(acks))
        self.last_step = last


def lease_faults(acks: Sequence[int], before: int, last: int) -> list[str]:
    """Return one message for each of the steps `before` + 1 to `last` that does not have exactly one lease."""
    found = Counter(acks)
    out = [f"step {step} has {n} leases" for step, n in found.items() if n > 1]
    gaps = [step for step in range(before + 1, last + 1) if step not in found]
    return out + [f"step {step} has no lease, but a later step has one" for step in gaps]
