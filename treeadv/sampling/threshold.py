"""The fork threshold tau in nats: fixed, or a quantile of the entropies of the newest forests.

One threshold serves all generators of a run. It depends on earlier forests only and holds for a whole forest, so a rule
that reads it stays predictable.
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

    `sampling.tau` holds while those forests have fewer than `sampling.tau_min_tokens` tokens. Memory does not grow with
    the length of the forests: each is kept as a histogram, so a quantile is the upper edge of its bin.
    """

    def __init__(self, sampling: SamplingConfig) -> None:
        self._sampling = sampling
        self._window: deque[np.ndarray] = deque()
        self._total = np.zeros(len(EDGES) + 1, np.int64)

    def observe(self, entropy: np.ndarray) -> None:
        """Take in the entropies [T] of a finished forest, in nats."""
        counts = np.bincount(np.searchsorted(EDGES, entropy), minlength=len(self._total))
        self._window.append(counts)
        self._total += counts
        if len(self._window) > self._sampling.tau_window:
            self._total -= self._window.popleft()

    def to_state(self) -> np.ndarray:
        """The histograms [forests, bins] of the window, oldest first."""
        return np.array([*self._window], np.int64).reshape(-1, len(self._total))

    def restore(self, state: np.ndarray) -> None:
        """Continue from what `to_state` gave."""
        self._window, self._total = deque(state), state.sum(axis=0)

    @property
    def tau(self) -> float:
        """The threshold in nats for a forest that starts now."""
        s, tokens = self._sampling, int(self._total.sum())
        if s.tau_quantile is None or tokens < s.tau_min_tokens:
            return s.tau
        bin_number = int(np.searchsorted(np.cumsum(self._total), max(1, math.ceil(s.tau_quantile * tokens))))
        return float(EDGES[min(bin_number, len(EDGES) - 1)])
