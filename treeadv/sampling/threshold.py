"""The fork threshold tau in nats. It is fixed, or it is a quantile of the entropies of the newest forests.

All generators of a run use one threshold. The threshold of a forest depends on earlier forests only, so a rule that
reads the threshold stays predictable.
"""

from __future__ import annotations

import math
from collections import deque

import numpy as np

from treeadv.config import SamplingConfig

EDGES = np.geomspace(1e-4, 32.0, 1024)  # edges of the histogram in nats; neighbours differ by 1.2 %


class Threshold:
    """The threshold tau, which is fixed or follows the last forests.

    With `sampling.tau_quantile` tau is this quantile of the entropies of the tokens of the last `sampling.tau_window`
    forests. Without it, and while these forests have fewer than `sampling.tau_min_tokens` tokens, tau is
    `sampling.tau`. A forest is stored as a histogram, so the memory does not depend on its length. A quantile is the
    upper edge of its bin.
    """

    def __init__(self, sampling: SamplingConfig) -> None:
        self._sampling = sampling
        self._window: deque[np.ndarray] = deque()
        self._total = np.zeros(len(EDGES) + 1, np.int64)

    def observe(self, entropy: np.ndarray) -> None:
        """Add the entropies [T] of a finished forest, in nats. A fixed threshold ignores them."""
        if self._sampling.tau_quantile is None:
            return
        # `below` counts the entropies up to each edge. To look up the edges takes less time than to look up the tokens.
        below = np.searchsorted(np.sort(entropy), EDGES, side="right")
        counts = np.diff(below, prepend=0, append=len(entropy))
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
        """Return the threshold in nats for the next forest."""
        s, tokens = self._sampling, int(self._total.sum())
        if s.tau_quantile is None or tokens < s.tau_min_tokens:
            return s.tau
        bin_number = int(np.searchsorted(np.cumsum(self._total), max(1, math.ceil(s.tau_quantile * tokens))))
        return float(EDGES[min(bin_number, len(EDGES) - 1)])
