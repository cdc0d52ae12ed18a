"""The number of forests that one generator grows at a time. The forests should fill the rows of the generator's
engine."""

from __future__ import annotations

from collections.abc import Callable

from treeadv.config import Config


class ForestsInFlight:
    """The loops that grow forests on one generator. The free rows of its engine decide when a loop starts or ends.

    A forest uses one row for each tree at its start and one row for each leaf at its end. With a fixed number of
    forests, rows would be free at first or branches would wait later. When a forest ends, its loop continues, starts
    one more loop, or ends."""

    def __init__(self, config: Config, start: Callable[[ForestsInFlight], object]) -> None:
        """Start `generator.forests` loops. A call of `start` starts one loop, which reserves, grows and admits one
        forest after another."""
        self._roots, self._leaves, self._start = config.sampling.roots, config.sampling.leaves, start
        self.loops = 0
        self.reserving = 0  # loops that wait for a slot of the queue
        for _ in range(config.generator.forests):
            self._add()

    def keeps_loop(self, free: int) -> bool:
        """Return whether the loop whose forest has ended continues. May start one more loop.

        `free` is the number of further branches that the engine could draw now. It is negative if branches wait for a
        row."""
        if free >= self._roots and not self.reserving:
            self._add()
        elif free < -self._leaves and self.loops > 1:
            self.loops -= 1
            return False
        return True

    def _add(self) -> None:
        self.loops += 1
        self._start(self)
