"""The decision to fork: the guards of the configuration, then its fork rule."""

from __future__ import annotations

import math
from typing import Literal

from treeadv.config import SamplingConfig
from treeadv.sampling.rules import Prefix, build_rule


class Forking:
    """Decides for the chains of a forest where they fork. `tau` is the threshold in nats that holds for the whole
    forest.
    """

    def __init__(self, sampling: SamplingConfig, tau: float) -> None:
        """Raises `BadInput` for a rule that does not exist or does not take its options."""
        self._sampling = sampling
        self.rule = build_rule(sampling.rule, sampling.rule_options)
        self._tau = tau if self.rule.uses_threshold else None

    @property
    def tau(self) -> float:
        """The threshold to record with the forest: NaN where the rule reads none."""
        return math.nan if self._tau is None else self._tau

    def possible(self, *, depth: int, position: int) -> bool:
        """Whether a segment at this `depth` may still fork once its chain has `position` tokens. False stays false
        along the chain.
        """
        s = self._sampling
        return self.rule.ever_fires and depth < s.max_depth and s.max_tokens - position >= s.min_tail

    def _allowed(self, *, budget: int, gap: int, depth: int, position: int) -> bool:
        """Whether the guards allow a fork: leaf budget for every child, a long enough segment, room left, and not too
        deep.
        """
        s = self._sampling
        return budget >= s.arity and gap >= s.min_gap and self.possible(depth=depth, position=position)

    def forks(
        self, *, entropy: float, logprob: float, budget: int, gap: int, depth: int, position: int, seed: int
    ) -> bool:
        """Whether the chain forks before the token with this `entropy` and `logprob`. See `Prefix` for the
        arguments."""
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

    even: as evenly as it goes; the first children take the rest. backbone: one leaf each, and the rest to the first
    child, so that only one path of a tree forks.

    >>> split(7, 2), split(7, 2, "backbone")
    ([4, 3], [6, 1])
    """
    if how == "backbone":
        return [budget - arity + 1, *[1] * (arity - 1)]
    return [budget // arity + (i < budget % arity) for i in range(arity)]
