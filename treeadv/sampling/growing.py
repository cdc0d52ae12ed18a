"""The segments of a forest that a search grows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from treeadv.engines.base import Draw
from treeadv.forest import Finish


@dataclass(slots=True, eq=False, kw_only=True)
class GrowingSegment:
    """A segment of a growing forest. A drawn leaf has a `finish`. `reward` is NaN until the reward is known."""

    tree: str
    above: GrowingSegment | None = None
    draws: list[Draw] = field(default_factory=list)
    children: list[GrowingSegment] = field(default_factory=list)
    finish: Finish | None = None
    reward: float = math.nan

    def subtree(self) -> Iterator[GrowingSegment]:
        """Yield this segment and all segments below it, depth first."""
        yield self
        for child in self.children:
            yield from child.subtree()

    def leaves(self) -> list[GrowingSegment]:
        return [s for s in self.subtree() if not s.children]

    def ancestors(self) -> list[GrowingSegment]:
        """Return the segments above this segment, from the root."""
        return [*self.above.ancestors(), self.above] if self.above else []

    def height(self) -> int:
        """Return the largest number of forks on a path from this segment down to a leaf."""
        return 1 + max(c.height() for c in self.children) if self.children else 0

    def path(self) -> list[int]:
        """Return the tokens from the root to the end of this segment."""
        return [d.token for s in (*self.ancestors(), self) for d in s.draws]

    def fork(self, at: int) -> GrowingSegment:
        """Split this segment before its token `at` and return the new second child, which has no token yet."""
        tail = GrowingSegment(
            tree=self.tree,
            above=self,
            draws=self.draws[at:],
            children=self.children,
            finish=self.finish,
            reward=self.reward,
        )
        for child in tail.children:
            child.above = tail
        sibling = GrowingSegment(tree=self.tree, above=self)
        self.draws, self.children = self.draws[:at], [tail, sibling]
        self.finish, self.reward = None, math.nan
        return sibling


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Place:
    """A place where the guards of the configuration allow a fork: before the token `at` of `segment`."""

    segment: GrowingSegment
    at: int

    @property
    def entropy(self) -> float:
        """Return the entropy in nats of the distribution of the token at this place."""
        return self.segment.draws[self.at].entropy
