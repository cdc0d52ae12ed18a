"""Forests of the rule `search` on the tabular policy. The search of `treeadv.sampling` grows them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import numpy as np

from benchmarks.tabular import World, child, states_of
from treeadv.config import SamplingConfig
from treeadv.data.problems import Problem
from treeadv.engines.base import Draw, Params
from treeadv.forest import Finish, Forest, Verdict
from treeadv.sampling.request import GrowRequest
from treeadv.sampling.rules import build_rule
from treeadv.sampling.search import SearchGrowth
from treeadv.sampling.search_rule import SearchRule

PROMPT = np.zeros(1, np.int32)
PROBLEM = Problem(id="p", problem="", answer="", verifier="exact", meta="")


class TabularEngine:
    """The part of an engine that a search uses. It draws from the policy of `world`."""

    def __init__(self, world: World, rng: np.random.Generator) -> None:
        self._world, self._rng = world, rng

    async def generate(self, prefix: np.ndarray, params: Params, namespace: str, tree: str) -> AsyncIterator[Draw]:
        world, state = self._world, state_after(prefix[len(PROMPT) :])
        while not world.ends(state):
            token = int(np.searchsorted(world.cumulative[state], self._rng.random()))
            after = child(state, token)
            ended = Finish.STOP if world.stopped(np.array(after)) else Finish.LENGTH
            logprob, entropy = float(np.log(world.prob[state, token])), float(world.entropy[state])
            yield Draw(
                token=token, logprob=logprob, entropy=entropy, version=0, finish=ended if world.ends(after) else None
            )
            state = after

    async def release(self, namespace: str) -> None:
        """Do nothing: the engine keeps nothing of a forest."""


def state_after(tokens: Sequence[int] | np.ndarray) -> int:
    """Return the prefix that consists of `tokens`."""
    state = 0
    for token in tokens:
        state = child(state, int(token))
    return state


def grow_by_search(world: World, s: SamplingConfig, rng: np.random.Generator) -> tuple[Forest, np.ndarray]:
    """Return a graded forest, and the state [T] in which each of its tokens was drawn."""

    async def judge(paths: Sequence[np.ndarray]) -> list[float]:
        return [float(world.reward[state_after(path)]) for path in paths]

    rule = build_rule(s.rule, s.rule_options)
    assert isinstance(rule, SearchRule)
    request = GrowRequest(forest_id="f", problem=PROBLEM, prompt=PROMPT, seed=int(rng.integers(2**31)))
    engine = TabularEngine(world, rng)
    search = SearchGrowth(engine, request, sampling=s, rule=rule, stop=frozenset(), retries=0, judge=judge)
    forest = asyncio.run(search.run())
    states = states_of(forest)
    end = forest.start[forest.leaf_segment + 1] - 1
    last = child(states[end], forest.token[end])  # type: ignore[arg-type]
    verdict = np.full(forest.leaves, Verdict.VERIFIED, np.int8)
    return replace(forest, reward=world.reward[last].astype(np.float32), verdict=verdict), states
