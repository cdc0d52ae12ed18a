"""The fork threshold tau in nats: fixed, or a quantile of the entropies of the newest forests.

All generators of a run use one threshold. The threshold of a forest depends on earlier forests only, so a rule that
reads the threshold stays predictable.
"""

from __future__ import annotations

import math
from collections import deque

import numpy as np

from treeadv.config import SamplingConfig

EDGES = np.geomspace(1e-4, 32.0, 1024)  # nats; the edges of the histogram, 1.2 % apart


class Threshold:
    """tau: `sampling.tau`, or with `sampling.tau_quantile` that quantile over the tokens of the last
    `sampling.tau_window` forests.

    `sampling.tau` is used while these forests have fewer than `sampling.tau_min_tokens` tokens. A forest is stored as a
    histogram, so the memory does not depend on its length. A quantile is the upper edge of its bin.
    """

    def __init__(self, sampling: SamplingConfig) -> None:
        self._sampling = sampling
        self._window: deque[np.ndarray] = deque()
        self._total = np.zeros(len(EDGES) + 1, np.int64)

    def observe(self, entropy: np.ndarray) -> None:
        """Add the entropies [T] of a finished forest, in nats."""
        counts = np.bincount(np.searchsorted(EDGES, entropy), minlength=len(self._total))
        self._window.append(counts)
        self._total += counts
        if len(self._window) > self._sampling.tau_window:
            self._total -= self._window.popleft()

    def to_state(self) -> np.ndarray:
        """Return the histograms [forests, bins] of the window, oldest first."""
        return np.array([*self._window], np.int64).reshape(-1, len(self._total))

    def restore(self, state: np.ndarray) -> None:
        """Restore the histograms of `to_state`."""
        self._window, self._total = deque(state), state.sum(axis=0)

    @property
    def tau(self) -> float:
        """The threshold in nats for the next forest."""
        s, tokens = self._sampling, int(self._total.sum())
        if s.tau_quantile is None or tokens < s.tau_min_tokens:
            return s.tau
        bin_number = int(np.searchsorted(np.cumsum(self._total), max(1, math.ceil(s.tau_quantile * tokens))))
        return float(EDGES[min(bin_number, len(EDGES) - 1)])
