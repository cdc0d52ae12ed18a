"""The decision to fork. The guards of the configuration are checked first, and then its fork rule."""

from __future__ import annotations

import math
from typing import Literal

from treeadv.config import SamplingConfig
from treeadv.sampling.rules import Prefix, build_rule


class Forking:
    """The decision where the chains of a forest fork. `tau` is the fork threshold of the forest in nats."""

    def __init__(self, sampling: SamplingConfig, tau: float) -> None:
        """Build the fork rule. Raises `BadInput` for an unknown rule or invalid options."""
        self._sampling = sampling
        self.rule = build_rule(sampling.rule, sampling.rule_options)
        self._tau = tau if self.rule.uses_threshold else None

    @property
    def tau(self) -> float:
        """Return the threshold to record with the forest, or NaN for a rule without a threshold."""
        return math.nan if self._tau is None else self._tau

    def possible(self, *, depth: int, position: int) -> bool:
        """Return whether a segment at this `depth` may still fork when its chain has `position` tokens.

        If the result is False, it is False for all later positions of the chain.
        """
        s = self._sampling
        return self.rule.ever_fires and depth < s.max_depth and s.max_tokens - position >= s.min_tail

    def _allowed(self, *, budget: int, gap: int, depth: int, position: int) -> bool:
        """Return whether the guards allow a fork.

        The guards are a leaf budget for every child, the minimum gap, the minimum tail and the maximum depth."""
        s = self._sampling
        return budget >= s.arity and gap >= s.min_gap and self.possible(depth=depth, position=position)

    def forks(
        self, *, entropy: float, logprob: float, budget: int, gap: int, depth: int, position: int, seed: int
    ) -> bool:
        """Return whether the chain forks before the token with this `entropy` and `logprob`.

        The arguments are those of `Prefix`."""
        if not self._allowed(budget=budget, gap=gap, depth=depth, position=position):
            return False
        return self.rule.fires(
            Prefix(
                entropy=entropy,
                gap=gap,
                depth=depth,
                position=position,
                budget=budget,
                seed=seed,
                tau=self._tau,
                logprob=None if self.rule.predictable else logprob,
            )
        )


def split(budget: int, arity: int, how: Literal["even", "backbone"] = "even") -> list[int]:
    """Share the leaf budget of a segment among its `arity` children.

    With `even` the shares differ by at most 1, and the first children get the larger shares. With `backbone` every
    child gets one leaf and the first child also gets the rest, so only one path of a tree forks.

    >>> split(7, 2), split(7, 2, "backbone")
    ([4, 3], [6, 1])
    """
    if how == "backbone":
        return [budget - arity + 1, *[1] * (arity - 1)]
    return [budget // arity + (i < budget % arity) for i in range(arity)]
