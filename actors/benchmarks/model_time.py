"""The time that an embedded engine spends in its model."""

from __future__ import annotations

import time

from treeadv.engines.embedded import EmbeddedEngine


class ModelTime:
    """The sum of the seconds that an embedded engine spends in its model."""

    def __init__(self, engine: EmbeddedEngine) -> None:
        self.seconds, self._engine = 0.0, engine
        self._forward = forward = engine.model.forward

        def timed(*args: object, **kwargs: object) -> object:
            started = time.perf_counter()
            try:
                return forward(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - started

        engine.model.forward = timed

    def stop(self) -> None:
        """Measure no longer."""
        self._engine.model.forward = self._forward
