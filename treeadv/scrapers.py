"""The programs that read the metrics of a role again and again, such as Prometheus."""

from __future__ import annotations

import math

LONGEST = 60.0  # seconds; a program that reads less often than this is not waited for


class Scrapers:
    """The programs, by address, with the times of their last two reads. Times are seconds of one monotonic clock."""

    def __init__(self) -> None:
        self._reads: dict[str, tuple[float, float]] = {}  # address -> time of the read before the last, and of the last

    def read(self, address: str, now: float) -> None:
        """Note that a program reads the metrics."""
        self._reads[address] = self._reads.get(address, (-math.inf, -math.inf))[1], now

    def expected_until(self, since: float) -> float:
        """Return the time until which a program that has not read since `since` is expected to read.

        A program is expected within twice the time between its last two reads. The result is `since` if none is
        expected."""
        late = (last + 2 * (last - before) for before, last in self._reads.values()
                if last < since and last - before <= LONGEST)  # fmt: skip
        return max(late, default=since)
