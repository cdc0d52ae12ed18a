"""The search, which grows a forest in rounds. It draws whole paths first and then forks them.

The other rules decide while a chain is drawn, and know only its prefix. A search decides after paths have ended. It
knows the entropies of all tokens drawn so far. Under `ucb` it also knows the rewards of the leaves of earlier rounds of
this forest. Before the first round it knows nothing about the prompt. The choice of a fork depends on tokens after the
fork, so a search is not predictable, and every forest records that. The branches of a round are drawn concurrently. The
next round starts when all of them have ended, so a forest does not depend on scheduling.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

import numpy as np

from treeadv.config import SamplingConfig
from treeadv.engines.base import Draw, Engine, EngineLost, Params
from treeadv.errors import BadInput
from treeadv.forest import Finish, Forest
from treeadv.sampling.request import GrowRequest
from treeadv.sampling.rules import Search
from treeadv.seeds import derive, uniform

# A function from the tokens of finished leaves to their rewards. A leaf that no verifier could judge has the reward
# NaN.
Judge: TypeAlias = Callable[[Sequence[np.ndarray]], Awaitable[Sequence[float]]]


@dataclass(slots=True, eq=False)
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
        tail = GrowingSegment(self.tree, self, self.draws[at:], self.children, self.finish, self.reward)
        for child in tail.children:
            child.above = tail
        sibling = GrowingSegment(self.tree, self)
        self.draws, self.children = self.draws[:at], [tail, sibling]
        self.finish, self.reward = None, math.nan
        return sibling


class SearchGrowth:
    """The growth of one forest by a search. A lost branch continues from its last token up to `retries` times."""

    def __init__(
        self, engine: Engine, request: GrowRequest, sampling: SamplingConfig, rule: Search, stop: frozenset[int],
        retries: int, judge: Judge | None,
    ) -> None:  # fmt: skip
        if rule.needs_rewards and judge is None:
            raise BadInput("sampling.rule_options: by=ucb needs rewards while a forest grows; none are known here")
        self._engine, self._request, self._sampling, self._rule = engine, request, sampling, rule
        self._stop, self._retries, self._judge = stop, retries, judge
        self._roots: list[GrowingSegment] = []
        self._drawn = 0  # branches that were started so far
        self._losses: list[str] = []

    async def run(self) -> Forest:
        s = self._sampling
        try:
            await self._round([self._new_root() for _ in range(s.roots)])
            while self._drawn < s.leaves and (chosen := self._choose(min(self._rule.width, s.leaves - self._drawn))):
                await self._round(chosen)
            if s.topup and self._drawn < s.leaves:
                await self._round([self._new_root() for _ in range(s.leaves - self._drawn)])
        finally:
            await self._engine.release(self._request.forest_id)
        roots = [root for root in self._roots if root.draws]
        if not roots:
            raise EngineLost(self._losses[-1])
        return self._forest(roots)

    def _new_root(self) -> GrowingSegment:
        self._roots.append(GrowingSegment(str(len(self._roots))))
        return self._roots[-1]

    async def _round(self, leaves: Sequence[GrowingSegment]) -> None:
        """Draw the branches of a round to their ends. Get their rewards if the search reads rewards."""
        async with asyncio.TaskGroup() as group:
            for leaf in leaves:
                group.create_task(self._draw(leaf, self._drawn))
                self._drawn += 1
        ended = [leaf for leaf in leaves if leaf.draws and leaf.finish != Finish.ABORT]
        if self._judge and self._rule.needs_rewards and ended:
            rewards = await self._judge([np.asarray(leaf.path(), np.int32) for leaf in ended])
            for leaf, reward in zip(ended, rewards, strict=True):
                leaf.reward = reward

    async def _draw(self, leaf: GrowingSegment, number: int) -> None:
        s, request = self._sampling, self._request
        for attempt in range(self._retries + 1):
            path = leaf.path()
            prefix = np.concatenate([request.prompt, np.asarray(path, np.int32)])
            seed = derive(request.seed, "branch", number, attempt)
            params = Params(max_tokens=s.max_tokens - len(path), temperature=s.temperature, stop=self._stop, seed=seed)
            try:
                async for draw in self._engine.generate(prefix, params, request.forest_id, leaf.tree):
                    leaf.draws.append(draw)
                    leaf.finish = draw.finish
                return
            except EngineLost as lost:
                self._losses.append(f"branch {number} after {len(leaf.path())} tokens: {lost}")
        leaf.finish = Finish.ABORT

    def _choose(self, count: int) -> list[GrowingSegment]:
        """Fork up to `count` times and return the new leaves."""
        chosen: list[GrowingSegment] = []
        for _ in range(count):
            places = [(s, at) for root in self._roots for s in root.subtree() for at in self._allowed(s)]
            if self._rule.by == "ucb" and places:
                path = self._descend({id(a) for s, _ in places for a in (s, *s.ancestors())})
                places = [(s, at) for s, at in places if id(s) in path]
            if not places:
                break
            entropy = np.array([s.draws[at].entropy for s, at in places], np.float64)
            weights = np.ones(len(places)) if self._rule.by == "uniform" or entropy.sum() == 0 else entropy
            below = uniform(self._request.seed, "place", self._drawn + len(chosen)) * weights.sum()
            at = min(int(np.searchsorted(np.cumsum(weights), below, side="right")), len(places) - 1)
            segment, position = places[at]
            chosen.append(segment.fork(position))
        return chosen

    def _allowed(self, segment: GrowingSegment) -> Iterator[int]:
        """Yield the indices of the tokens of a segment before which the guards of the configuration allow a fork."""
        s, above = self._sampling, segment.ancestors()
        if len(above) + segment.height() >= s.max_depth:
            return
        offset = sum(len(a.draws) for a in above)
        last = len(segment.draws) - (s.min_gap if segment.children else 1)
        for at in range(s.min_gap, last + 1):
            if s.max_tokens - offset - at >= s.min_tail:
                yield at

    def _descend(self, open_: set[int]) -> set[int]:
        """Return the ids of the segments of one path from a root down.

        The path continues at each fork with the child that has the highest bound. It uses only the segments in `open_`,
        which have a place for a fork in them or below them."""
        path: set[int] = set()
        level = [root for root in self._roots if id(root) in open_]
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
        return mean + self._rule.exploration * math.sqrt(math.log(total) / len(leaves))

    def _forest(self, roots: Sequence[GrowingSegment]) -> Forest:
        segments = [s for root in roots for s in root.subtree() if s.draws]
        index = {id(s): n for n, s in enumerate(segments)}
        draws, problem = [d for s in segments for d in s.draws], self._request.problem
        ends = [s for s in segments if not any(c.draws for c in s.children)]
        return Forest.assemble(
            forest_id=self._request.forest_id, prompt_id=problem.id, gold=problem.answer, verifier=problem.verifier,
            meta=problem.meta, rule=self._sampling.rule, predictable=False, temperature=self._sampling.temperature,
            prompt=self._request.prompt, parent=[index[id(s.above)] if s.above else -1 for s in segments],
            lengths=[len(s.draws) for s in segments], arity=[len(s.children) for s in segments],
            token=[d.token for d in draws], logprob=[d.logprob for d in draws], entropy=[d.entropy for d in draws],
            version=[d.version for d in draws],
            finish=[Finish.ABORT if s.finish is None else s.finish for s in ends],
        )  # fmt: skip
