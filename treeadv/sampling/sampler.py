"""Growing one forest over an engine (docs/architecture.md).

A fork rule is applied left to right on the stream of an ordinary completion. The chain that crosses the threshold goes on
undisturbed and *is* the first child; its siblings are drawn from the fork's prefix by fresh requests. Nothing is aborted, nothing
is generated twice, and since every decision is a function of the chain's own past, the forest does not depend on scheduling.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from treeadv.config import SamplingConfig
from treeadv.engines.base import Draw, Engine, EngineLost, Params
from treeadv.forest import Finish, Forest
from treeadv.sampling.rules import PREDICTABLE, Prefix, forks, split
from treeadv.sampling.seeds import derive

RETRIES = 3  # a lost branch goes on from the tokens that it has, so many times, before it is recorded as aborted


@dataclass(frozen=True, slots=True)
class GrowRequest:
    """One prompt to grow a forest for. `prompt` [P] int32 is the tokenised prompt; `seed` fixes every draw and fork."""

    forest_id: str
    prompt_id: str
    gold: str
    verifier: str
    meta: str
    prompt: np.ndarray
    seed: int


@dataclass(slots=True)
class _Node:
    """A segment while it grows."""

    budget: int
    depth: int = 0
    arity: int = 0
    draws: list[Draw] = field(default_factory=list)
    children: list[_Node] = field(default_factory=list)
    finish: Finish | None = None

    def leaves(self) -> int:
        return sum(c.leaves() for c in self.children) or 1


async def grow(engine: Engine, request: GrowRequest, sampling: SamplingConfig, tau: float, stop: frozenset[int]) -> Forest:
    """Grow the forest of one prompt: `sampling.roots` trees that share `sampling.leaves` leaves.

    Raises `EngineLost` when no branch at all could be finished; a branch that is lost alone is recorded as aborted.
    """
    return await _Growth(engine, request, sampling, tau, stop).run()


class _Growth:
    def __init__(self, engine: Engine, request: GrowRequest, sampling: SamplingConfig, tau: float, stop: frozenset[int]) -> None:
        self.engine, self.request, self.s, self.tau, self.stop = engine, request, sampling, tau, stop
        self.lost: list[str] = []  # why branches were lost, each time

    async def run(self) -> Forest:
        budgets = split(self.s.leaves, self.s.roots)
        try:
            async with asyncio.TaskGroup() as group:
                trees = [group.create_task(self._tree(f"{i}", budget)) for i, budget in enumerate(budgets)]
        finally:
            await self.engine.release(self.request.forest_id)
        grown = [t.result() for t in trees]
        roots = [roots[0] for roots in grown] + [fresh for roots in grown for fresh in roots[1:]]
        if not any(r.draws for r in roots):
            raise EngineLost(self.lost[-1])
        return self._forest([r for r in roots if r.draws])

    async def _tree(self, name: str, budget: int) -> list[_Node]:
        """Grow one tree, and fresh roots without forks for the leaf budget that it did not use."""
        root = _Node(budget)
        await self._grow_all([(root, name, [])])
        unused = budget - root.leaves() if self.s.topup else 0
        fresh = [_Node(1) for _ in range(unused)]
        await self._grow_all([(node, f"{name}+{k}", []) for k, node in enumerate(fresh)])
        return [root, *fresh]

    async def _grow_all(self, branches: list[tuple[_Node, str, list[int]]]) -> None:
        async with asyncio.TaskGroup() as group:
            for node, name, path in branches:
                group.create_task(self._chain(node, name, path, group))

    async def _chain(self, node: _Node, name: str, path: list[int], group: asyncio.TaskGroup) -> None:
        """Follow one chain from the end of `path` (tokens after the prompt) to its leaf, opening siblings where it forks."""
        tree = name.partition("/")[0]
        for attempt in range(RETRIES + 1):
            seed = derive(self.request.seed, name, attempt)
            params = Params(self.s.max_tokens - len(path), self.s.temperature, self.s.top_p, self.stop, seed)
            prefix = np.concatenate([self.request.prompt, np.asarray(path, np.int32)])
            try:
                async for draw in self.engine.generate(prefix, params, self.request.forest_id, tree):
                    at = Prefix(draw.entropy, len(node.draws), node.depth, len(path), node.budget, seed)
                    if forks(at, draw.logprob, self.tau, self.s):
                        node = self._fork(node, name, list(path), group)
                    node.draws.append(draw)
                    path.append(draw.token)
                    node.finish = draw.finish
                return
            except EngineLost as lost:
                self.lost.append(f"branch {name} after {len(path)} tokens: {lost}")
        node.finish = Finish.ABORT

    def _fork(self, node: _Node, name: str, path: list[int], group: asyncio.TaskGroup) -> _Node:
        """End `node` before the token just drawn; start its later children from `path` and return the first, the chain itself."""
        node.arity = self.s.arity
        node.children = [_Node(budget, node.depth + 1) for budget in split(node.budget, node.arity)]
        for i, child in enumerate(node.children[1:], start=1):
            group.create_task(self._chain(child, f"{name}/{len(path)}.{i}", list(path), group))
        return node.children[0]

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
        r = self.request
        return Forest(
            forest_id=r.forest_id, prompt_id=r.prompt_id, gold=r.gold, verifier=r.verifier, meta=r.meta,
            rule=self.s.rule, predictable=PREDICTABLE[self.s.rule],
            tau=self.tau if self.s.rule in ("entropy", "surprisal") else float("nan"), temperature=self.s.temperature,
            prompt=r.prompt, parent=np.array(parent, np.int32),
            start=np.cumsum([0, *(len(n.draws) for n in nodes)], dtype=np.int32),
            tree=np.array(tree, np.int32), arity=np.array([n.arity for n in nodes], np.int32),
            budget=np.array([n.budget for n in nodes], np.int32),
            token=np.array([d.token for d in draws], np.int32), logprob=np.array([d.logprob for d in draws], np.float32),
            entropy=np.array([d.entropy for d in draws], np.float32), version=np.array([d.version for d in draws], np.int32),
            leaf_segment=np.array(ends, np.int32),
            finish=np.array([Finish.ABORT if nodes[s].finish is None else nodes[s].finish for s in ends], np.int8),
            reward=np.full(len(ends), np.nan, np.float32), verdict=np.full(len(ends), -1, np.int8),
        ).check()


def _euler(root: _Node, first: int) -> Iterator[tuple[_Node, int]]:
    """Nodes of a tree in depth-first order with their parents' numbers, counted from `first`; branches without a token are lost."""
    stack: list[tuple[_Node, int]] = [(root, -1)]
    number = first
    while stack:
        node, above = stack.pop()
        yield node, above
        stack.extend((c, number) for c in reversed(node.children) if c.draws)
        number += 1
