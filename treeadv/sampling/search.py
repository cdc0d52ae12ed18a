"""The search, which grows a forest in rounds. It draws whole paths first and then forks them.

The other rules decide while a chain is drawn, and know only its prefix. A search decides after paths have ended. It
knows the entropies of all tokens drawn so far. If its rule (`search_rule`) needs rewards, it also knows the rewards of
the leaves of earlier rounds of this forest. Before the first round it knows nothing about the prompt. The choice of a
fork depends on tokens after the fork, so a search is not predictable, and every forest records that. The branches of a
round are drawn concurrently. The next round starts when all of them have ended, so a forest does not depend on
scheduling.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TypeAlias

import numpy as np

from treeadv.config import SamplingConfig
from treeadv.engines.base import Engine, EngineLost, Params
from treeadv.errors import BadInput
from treeadv.forest import Finish, Forest
from treeadv.sampling.growing import GrowingSegment, Place
from treeadv.sampling.request import GrowRequest
from treeadv.sampling.search_rule import SearchRule
from treeadv.seeds import derive, uniform

# A function from the tokens of finished leaves to their rewards. A leaf that no verifier could judge has the reward
# NaN.
Judge: TypeAlias = Callable[[Sequence[np.ndarray]], Awaitable[Sequence[float]]]


class SearchGrowth:
    """The growth of one forest by a search. `rule` chooses the places of the forks.

    A lost branch continues from its last token up to `retries` times."""

    def __init__(
        self, engine: Engine, request: GrowRequest, *, sampling: SamplingConfig, rule: SearchRule, stop: frozenset[int],
        retries: int, judge: Judge | None,
    ) -> None:  # fmt: skip
        if rule.needs_rewards and judge is None:
            raise BadInput(
                f"sampling.rule={sampling.rule} reads rewards while a forest grows, and this call has no verifier;"
                " choose another rule"
            )
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
        self._roots.append(GrowingSegment(tree=str(len(self._roots))))
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
            places = [place for root in self._roots for s in root.subtree() for place in self._allowed(s)]
            if not places:
                break
            sums = np.cumsum(self._weights(places))
            below = uniform(self._request.seed, "place", self._drawn + len(chosen)) * sums[-1]
            place = places[int(np.searchsorted(sums, below, side="right"))]
            chosen.append(place.segment.fork(place.at))
        return chosen

    def _weights(self, places: Sequence[Place]) -> np.ndarray:
        """Return the weights that the rule gives to the places. Raises `BadInput` for weights that choose no place."""
        weights = np.asarray(self._rule.weights(self._roots, places), np.float64)
        if weights.shape != (len(places),) or not np.isfinite(weights).all() or weights.min() < 0 or not weights.any():
            raise BadInput(
                f"sampling.rule={self._sampling.rule}: `weights` must return a number for each of {len(places)} places,"
                " none negative and one above 0"
            )
        return weights

    def _allowed(self, segment: GrowingSegment) -> Iterator[Place]:
        """Yield the places of a segment where the guards of the configuration allow a fork."""
        s, above = self._sampling, segment.ancestors()
        if len(above) + segment.height() >= s.max_depth:
            return
        offset = sum(len(a.draws) for a in above)
        last = len(segment.draws) - (s.min_gap if segment.children else 1)
        for at in range(s.min_gap, last + 1):
            if s.max_tokens - offset - at >= s.min_tail:
                yield Place(segment=segment, at=at)

    def _forest(self, roots: Sequence[GrowingSegment]) -> Forest:
        segments = [s for root in roots for s in root.subtree() if s.draws]
        index = {id(s): n for n, s in enumerate(segments)}
        draws, problem = [d for s in segments for d in s.draws], self._request.problem
        ends = [s for s in segments if not any(c.draws for c in s.children)]
        return Forest.assemble(
            forest_id=self._request.forest_id, prompt_id=problem.id, gold=problem.answer, verifier=problem.verifier,
            meta=problem.meta, rule=self._sampling.rule, predictable=self._rule.predictable,
            temperature=self._sampling.temperature, prompt=self._request.prompt,
            parent=[index[id(s.above)] if s.above else -1 for s in segments],
            lengths=[len(s.draws) for s in segments], arity=[len(s.children) for s in segments],
            token=[d.token for d in draws], logprob=[d.logprob for d in draws], entropy=[d.entropy for d in draws],
            version=[d.version for d in draws],
            finish=[Finish.ABORT if s.finish is None else s.finish for s in ends],
        )  # fmt: skip
