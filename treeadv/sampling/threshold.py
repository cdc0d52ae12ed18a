"""The fork threshold tau in nats: fixed, or a quantile of the entropies of an earlier policy version."""

from __future__ import annotations

from collections import deque

import numpy as np

from treeadv.config import SamplingConfig


class Threshold:
    """tau: `sampling.tau`, or the `sampling.tau_quantile` of the entropies drawn under the previous policy version.

    Until a version is complete `sampling.tau` holds.
    """

    def __init__(self, s: SamplingConfig, keep: int = 100_000) -> None:
        self._s = s
        self._version = 0
        self._seen: deque[float] = deque(maxlen=keep)
        self.tau = s.tau

    def observe(self, entropy: np.ndarray, version: int) -> None:
        """Take in the entropies [T] of a finished forest; `version` is its newest policy version."""
        if self._s.tau_quantile is None:
            return
        if version > self._version and self._seen:
            self.tau = float(np.quantile(np.fromiter(self._seen, float), self._s.tau_quantile))
            self._version = version
            self._seen.clear()
        self._seen.extend(entropy.tolist())
