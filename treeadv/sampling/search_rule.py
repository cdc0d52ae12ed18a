"""The rules of searches. A search draws whole paths first and then forks them in rounds (`sampling.search`)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Literal

from treeadv.sampling.growing import GrowingSegment, Place
from treeadv.sampling.rules import ForkRule, Prefix
from treeadv.section import NonNegative, Positive


class SearchRule(ForkRule, ABC):
    """A rule that chooses forks after paths have ended. It is biased, because it reads tokens after the fork."""

    predictable = False
    width: Positive = 2  # largest number of forks in a round

    def fires(self, prefix: Prefix) -> bool:
        return False  # no chain forks while it is drawn

    @abstractmethod
    def weights(self, roots: Sequence[GrowingSegment], places: Sequence[Place]) -> Sequence[float]:
        """Return one weight for each place. The next fork is at a place that is drawn in proportion to its weight.

        `roots` are the trees that have grown so far. `places` are all places that the guards of the configuration
        allow, at least one. At least one weight must be above 0."""


class Search(SearchRule):
    """The search by `by`.

    `uniform` chooses all tokens with equal probability. `entropy` chooses a token in proportion to its entropy. `ucb`
    follows a path down the tree along the highest upper confidence bounds of the reward, and chooses a token of this
    path in proportion to its entropy.
    """

    by: Literal["uniform", "entropy", "ucb"] = "entropy"
    exploration: NonNegative = 1.0  # weight of the uncertainty under `ucb`

    @property
    def needs_rewards(self) -> bool:
        return self.by == "ucb"

    def weights(self, roots: Sequence[GrowingSegment], places: Sequence[Place]) -> list[float]:
        if self.by == "uniform":
            return [1.0] * len(places)
        weights = [place.entropy for place in places]
        possible = [1.0] * len(places)
        if self.by == "ucb":
            path = self._descend(roots, {id(s) for p in places for s in (p.segment, *p.segment.ancestors())})
            possible = [float(id(place.segment) in path) for place in places]
            weights = [w * p for w, p in zip(weights, possible, strict=True)]
        return weights if any(weights) else possible

    def _descend(self, roots: Sequence[GrowingSegment], open_: set[int]) -> set[int]:
        """Return the ids of the segments of one path from a root down.

        The path continues at each fork with the child that has the highest bound. It uses only the segments in `open_`,
        which have a place for a fork in them or below them."""
        path: set[int] = set()
        level = [root for root in roots if id(root) in open_]
        while level:
            total = sum(len(s.leaves()) for s in level)
            best = max(level, key=partial(self._bound, total))
            path.add(id(best))
            level = [child for child in best.children if id(child) in open_]
        return path

    def _bound(self, total: int, segment: GrowingSegment) -> float:
        """Return the upper confidence bound of the reward of a segment.

        It is the mean reward of the leaves below the segment plus a term for the uncertainty. The term is large if the
        segment has few of the `total` leaves below it and its siblings."""
        leaves = segment.leaves()
        known = [leaf.reward for leaf in leaves if not math.isnan(leaf.reward)]
        mean = sum(known) / len(known) if known else 0.0
        return mean + self.exploration * math.sqrt(math.log(total) / len(leaves))
