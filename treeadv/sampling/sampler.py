"""Grows one forest with an engine.

The sampler applies the fork rule to each token of an ordinary completion. When the rule fires, the chain continues and
becomes the first child. New requests draw the siblings from the same prefix. No request is aborted and no token is
generated twice. Every decision depends only on the earlier tokens of the chain, so a forest does not depend on
scheduling.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from treeadv.config import SamplingConfig
from treeadv.engines.base import Draw, Engine, EngineLost, Params, PathTooLong
from treeadv.forest import Finish, Forest
from treeadv.sampling.forking import Forking, split
from treeadv.sampling.request import GrowRequest
from treeadv.sampling.rules import build_rule
from treeadv.sampling.search import Judge, SearchGrowth
from treeadv.sampling.search_rule import SearchRule
from treeadv.seeds import derive

RETRIES = 3  # a lost branch continues from its last token this many times before it is recorded as aborted


@dataclass(slots=True)
class _Node:
    """A growing segment. `fresh` holds the new roots that get the leaf budget that this segment cannot use."""

    budget: int
    depth: int = 0
    arity: int = 0
    draws: list[Draw] = field(default_factory=list)
    children: list[_Node] = field(default_factory=list)
    fresh: list[_Node] = field(default_factory=list)
    finish: Finish | None = None


@dataclass(slots=True)
class _Chain:
    """One request to the engine. It starts in segment `node` after the tokens `path`. Its seed depends on `name`."""

    node: _Node
    name: str
    tree: str
    path: list[int]


async def grow(
    engine: Engine,
    request: GrowRequest,
    sampling: SamplingConfig,
    tau: float,
    stop: frozenset[int],
    judge: Judge | None = None,
) -> Forest:
    """Grow the forest of one prompt: `sampling.roots` trees with `sampling.leaves` leaves in total.

    `stop` holds the token ids that end a leaf. A search that reads rewards gets them from `judge`. Raises `EngineLost`
    if no branch draws a token, and `PathTooLong` before anything is drawn. A single lost branch is recorded as aborted.
    """
    if len(request.prompt) + sampling.max_tokens > engine.longest:
        raise PathTooLong(
            f"prompt {request.problem.id} has {len(request.prompt)} tokens: "
            f"with sampling.max_tokens={sampling.max_tokens} its paths "
            f"would be longer than the {engine.longest} tokens that model and engine allow"
        )
    rule = build_rule(sampling.rule, sampling.rule_options)
    if isinstance(rule, SearchRule):
        return await SearchGrowth(
            engine, request, sampling=sampling, rule=rule, stop=stop, retries=RETRIES, judge=judge
        ).run()
    return await _Growth(engine, request, sampling, tau, stop).run()


class _Growth:
    def __init__(
        self, engine: Engine, request: GrowRequest, sampling: SamplingConfig, tau: float, stop: frozenset[int]
    ) -> None:
        self._engine, self._request, self._sampling, self._stop = engine, request, sampling, stop
        self._forking = Forking(sampling, tau)
        self._losses: list[str] = []  # a reason for each loss of a branch

    async def run(self) -> Forest:
        trees = [_Node(budget) for budget in split(self._sampling.leaves, self._sampling.roots)]
        try:
            async with asyncio.TaskGroup() as group:
                for i, root in enumerate(trees):
                    group.create_task(self._follow(_Chain(root, str(i), str(i), []), group))
        finally:
            await self._engine.release(self._request.forest_id)
        fresh = [node for root in trees for segment in _depth_first(root) for node in segment.fresh]
        drawn = [root for root in (*trees, *fresh) if root.draws]
        if not drawn:
            raise EngineLost(self._losses[-1])
        return self._forest(drawn)

    async def _follow(self, chain: _Chain, group: asyncio.TaskGroup) -> None:
        """Follow one chain to its leaf, and start siblings at its forks."""
        if not self._forking.possible(depth=chain.node.depth, position=len(chain.path)):
            self._pass_on(chain, group)
        for attempt in range(RETRIES + 1):
            seed = derive(self._request.seed, chain.name, attempt)
            try:
                await self._draw(chain, seed, group)
                break
            except EngineLost as lost:
                self._losses.append(f"branch {chain.name} after {len(chain.path)} tokens: {lost}")
        else:
            chain.node.finish = Finish.ABORT
        self._pass_on(chain, group)

    async def _draw(self, chain: _Chain, seed: int, group: asyncio.TaskGroup) -> None:
        """Draw the rest of a chain with one request."""
        s, path, forking = self._sampling, chain.path, self._forking
        params = Params(max_tokens=s.max_tokens - len(path), temperature=s.temperature, stop=self._stop, seed=seed)
        prefix = np.concatenate([self._request.prompt, np.asarray(path, np.int32)])
        async for draw in self._engine.generate(prefix, params, self._request.forest_id, chain.tree):
            node = chain.node
            if node.budget > 1 and not node.fresh:
                if not forking.possible(depth=node.depth, position=len(path)):
                    self._pass_on(chain, group)
                elif forking.forks(
                    entropy=draw.entropy,
                    logprob=draw.logprob,
                    budget=node.budget,
                    gap=len(node.draws),
                    depth=node.depth,
                    position=len(path),
                    seed=seed,
                ):
                    node = chain.node = self._fork(chain, group)
            node.draws.append(draw)
            path.append(draw.token)
            node.finish = draw.finish

    def _fork(self, chain: _Chain, group: asyncio.TaskGroup) -> _Node:
        """End the chain's segment before the token just drawn and start the later children. Returns the first child."""
        node, position, s = chain.node, len(chain.path), self._sampling
        node.arity = s.arity
        node.children = [_Node(budget, node.depth + 1) for budget in split(node.budget, node.arity, s.split)]
        for i, child in enumerate(node.children[1:], start=1):
            sibling = _Chain(child, f"{chain.name}/{position}.{i}", chain.tree, list(chain.path))
            group.create_task(self._follow(sibling, group))
        return node.children[0]

    def _pass_on(self, chain: _Chain, group: asyncio.TaskGroup) -> None:
        """Give the leaf budget that the chain can no longer use to new roots. The new roots start at once.

        A second call has no effect.
        """
        node = chain.node
        if not self._sampling.topup or node.fresh:
            return
        node.fresh = [_Node(1) for _ in range(node.budget - 1)]
        for k, root in enumerate(node.fresh):
            name = f"{chain.name}+{k}"
            group.create_task(self._follow(_Chain(root, name, name, []), group))

    def _forest(self, roots: list[_Node]) -> Forest:
        nodes: list[_Node] = []
        parent: list[int] = []
        tree: list[int] = []
        for t, root in enumerate(roots):
            for node, above in _euler(root, len(nodes)):
                nodes.append(node)
                parent.append(above)
                tree.append(t)
        draws = [d for n in nodes for d in n.draws]
        ends = [s for s, n in enumerate(nodes) if not any(c.draws for c in n.children)]
        problem = self._request.problem
        return Forest(
            forest_id=self._request.forest_id,
            prompt_id=problem.id,
            gold=problem.answer,
            verifier=problem.verifier,
            meta=problem.meta,
            rule=self._sampling.rule,
            predictable=self._forking.rule.predictable,
            tau=self._forking.tau,
            temperature=self._sampling.temperature,
            prompt=self._request.prompt,
            parent=np.array(parent, np.int32),
            start=np.cumsum([0, *(len(n.draws) for n in nodes)], dtype=np.int32),
            tree=np.array(tree, np.int32),
            arity=np.array([n.arity for n in nodes], np.int32),
            budget=np.array([n.budget for n in nodes], np.int32),
            token=np.array([d.token for d in draws], np.int32),
            logprob=np.array([d.logprob for d in draws], np.float32),
            entropy=np.array([d.entropy for d in draws], np.float32),
            version=np.array([d.version for d in draws], np.int32),
            leaf_segment=np.array(ends, np.int32),
            finish=np.array([Finish.ABORT if nodes[s].finish is None else nodes[s].finish for s in ends], np.int8),
            reward=np.full(len(ends), np.nan, np.float32),
            verdict=np.full(len(ends), -1, np.int8),
        ).check()


def _depth_first(root: _Node) -> Iterator[_Node]:
    """Yield all segments of a tree, a parent before its children."""
    stack = [root]
    while stack:
        node = stack.pop()
        yield node
        stack.extend(reversed(node.children))


def _euler(root: _Node, first: int) -> Iterator[tuple[_Node, int]]:
    """Yield the segments of a tree in depth-first order with the numbers of their parents, counted from `first`.

    A segment without a token is left out. Its branch was lost before the first token.
    """
    stack: list[tuple[_Node, int]] = [(root, -1)]
    number = first
    while stack:
        node, above = stack.pop()
        yield node, above
        stack.extend((c, number) for c in reversed(node.children) if c.draws)
        number += 1
