"""Fork rules: whether a chain forks at a prefix (docs/architecture.md).

A rule is *predictable* when it is a function of the prefix only. Forking on such a rule leaves the flow-weighted estimator unbiased
(docs/method.md); a rule that looks at the token drawn does not, and says so in the forest's record.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from treeadv.config import SamplingConfig
from treeadv.sampling.seeds import uniform

PREDICTABLE = {"entropy": True, "none": True, "fixed": True, "random": True, "surprisal": False}


@dataclass(frozen=True, slots=True)
class Prefix:
    """Where a chain stands before a token is drawn. All of it is known from the past."""

    entropy: float  # nats, of the distribution that the next token is drawn from
    gap: int  # tokens of the current segment
    depth: int  # forks above
    position: int  # tokens of the rollout so far
    budget: int  # leaves that the current segment may still give
    seed: int  # of the chain


def forks(prefix: Prefix, logprob: float, tau: float, s: SamplingConfig) -> bool:
    """Whether the chain forks before the token whose log-probability is `logprob` (which only `surprisal` looks at)."""
    guarded = (
        prefix.budget >= s.arity
        and prefix.gap >= s.min_gap
        and prefix.depth < s.max_depth
        and s.max_tokens - prefix.position >= s.min_tail
    )
    return guarded and _fires(prefix, logprob, tau, s)


def _fires(prefix: Prefix, logprob: float, tau: float, s: SamplingConfig) -> bool:
    match s.rule:
        case "entropy":
            return prefix.entropy > tau
        case "surprisal":
            return -logprob > tau
        case "fixed":
            return prefix.gap >= s.fixed_gap
        case "random":
            return uniform(prefix.seed, "fork", prefix.position) < s.random_p
        case "none":
            return False


def split(budget: int, arity: int) -> list[int]:
    """A segment's leaf budget shared among its children, the first ones taking what does not divide."""
    return [budget // arity + (i < budget % arity) for i in range(arity)]


class Threshold:
    """tau in nats: fixed, or the q-quantile of the entropies drawn under the previous policy version.

    Until a version is complete there is nothing to take a quantile of, and the fixed value holds.
    """

    def __init__(self, s: SamplingConfig, keep: int = 100_000) -> None:
        self._s = s
        self._version = 0
        self._seen: deque[float] = deque(maxlen=keep)
        self.tau = s.tau

    def observe(self, entropy: np.ndarray, version: int) -> None:
        """Take in a finished forest's entropies [T]; `version` is its newest."""
        if self._s.tau_quantile is None:
            return
        if version > self._version and self._seen:
            self.tau = float(np.quantile(np.fromiter(self._seen, float), self._s.tau_quantile))
            self._version = version
            self._seen.clear()
        self._seen.extend(entropy.tolist())
