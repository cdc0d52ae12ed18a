"""How many forests one generator grows at a time: as many as fill the rows of its engine."""

from __future__ import annotations

from collections.abc import Callable

from treeadv.config import Config


class ForestsInFlight:
    """Follows the free rows of one engine.

    A forest starts with a row for each of its trees and comes to one for each of its leaves, so a fixed number of
    forests either leaves rows free at their start or lets branches wait at their end. When a forest ends, its loop goes
    on, starts another one beside it, or ends.
    """

    def __init__(self, config: Config, start: Callable[[ForestsInFlight], object]) -> None:
        """`start` starts one more loop, which reserves, grows and admits one forest after another."""
        self._roots, self._leaves, self._start = config.sampling.roots, config.sampling.leaves, start
        self.loops = 0
        self.reserving = 0  # loops that wait for a slot of the queue
        for _ in range(config.generator.forests):
            self._add()

    def goes_on(self, free: int) -> bool:
        """Return whether the loop whose forest has ended goes on. May start another loop.

        `free`: branches that the engine could draw at once besides those that run; negative if branches wait for a row.
        """
        if free >= self._roots and not self.reserving:
            self._add()
        elif free < -self._leaves and self.loops > 1:
            self.loops -= 1
            return False
        return True

    def _add(self) -> None:
        self.loops += 1
        self._start(self)
