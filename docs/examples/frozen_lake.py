"""TreeAdv on a decision task: a table of action preferences learns to cross gymnasium's frozen lake.

    python docs/examples/frozen_lake.py [entropy | none | search]

Nothing in a forest is about language. A token is an action, a prompt is the start of an episode, and the engine plays
the environment: it saves the state of every prefix and restores it where a fork begins, so shared actions are played
once. Growth, advantages and objective are those of the library.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from typing import Any

import gymnasium
import numpy as np

import treeadv
from treeadv.config import SamplingConfig
from treeadv.data.problems import Problem
from treeadv.engines.base import Draw, EngineStats, Params, Weights
from treeadv.forest import Finish, Forest, Verdict
from treeadv.sampling.request import GrowRequest
from treeadv.sampling.sampler import grow

START = np.array([0], np.int32)  # the prompt: the lake has one start
MAP = ["SFF", "FHF", "FFG"]  # from S to G over ice; H is a hole
LIMIT = 8  # actions of an episode; the way takes 4
STEPS, FORESTS, RATE = 15, 4, 20.0


class Lake:
    """An engine that plays the frozen lake with a softmax policy. `saved` holds by path the state before the action."""

    version, longest, gone = 0, 1000, ""

    def __init__(self) -> None:
        self.env: Any = gymnasium.make("FrozenLake-v1", desc=MAP, is_slippery=False).unwrapped
        self.logits = np.zeros((self.env.observation_space.n, self.env.action_space.n))
        self.saved: dict[tuple[int, ...], tuple[int, dict[str, Any]]] = {}
        self.rewards: dict[tuple[int, ...], float] = {}  # of finished episodes, by path
        self.played = 0

    def policy(self, state: int) -> np.ndarray:
        """The probabilities [actions] in a state."""
        p = np.exp(self.logits[state] - self.logits[state].max())
        return p / p.sum()

    async def generate(self, prefix: np.ndarray, params: Params, namespace: str, tree: str) -> AsyncIterator[Draw]:
        path, rng = tuple(prefix[len(START) :].tolist()), np.random.default_rng(params.seed)
        if not path:
            self.env.reset(seed=0)
            self._save(path)
        for left in range(params.max_tokens, 0, -1):
            state = self._restore(path)
            p = self.policy(state)
            action = int(rng.choice(len(p), p=p))
            _, reward, terminated, _, _ = self.env.step(action)
            self.played += 1
            path = (*path, action)
            self._save(path)
            finish = Finish.STOP if terminated else Finish.LENGTH if left == 1 else None
            if finish is not None:
                self.rewards[path] = float(reward)
            yield Draw(
                token=action,
                logprob=float(np.log(p[action])),
                entropy=float(-(p * np.log(p)).sum()),
                version=self.version,
                finish=finish,
            )
            if finish is not None:
                return
            await asyncio.sleep(0)  # branches take turns, so each has to restore its own state

    def _save(self, path: tuple[int, ...]) -> None:
        self.saved[path] = (int(self.env.s), self.env.np_random.bit_generator.state)

    def _restore(self, path: tuple[int, ...]) -> int:
        self.env.s, self.env.np_random.bit_generator.state = self.saved[path]
        return int(self.env.s)

    async def release(self, namespace: str) -> None: ...

    async def update_weights(self, version: int, weights: Weights) -> float:
        raise NotImplementedError("the policy is a table that the learner shares")

    def stats(self) -> EngineStats:
        return EngineStats(decoded_tokens=self.played)

    async def close(self) -> None: ...


async def play(lake: Lake, sampling: SamplingConfig, number: int) -> Forest:
    """One graded forest of episodes."""

    async def judge(leaves: Sequence[np.ndarray]) -> list[float]:
        return [lake.rewards[tuple(leaf.tolist())] for leaf in leaves]

    request = GrowRequest(
        forest_id=f"lake-{number}",
        problem=Problem(id="lake", problem="", answer="", verifier="exact", meta=""),
        prompt=START,
        seed=number,
    )
    forest = await grow(lake, request, sampling, sampling.tau, frozenset(), judge)
    rewards = await judge([forest.leaf_tokens(i) for i in range(forest.leaves)])
    return forest.with_rewards(rewards, [Verdict.VERIFIED if r else Verdict.WRONG for r in rewards])


def learn(lake: Lake, forests: Sequence[Forest], preset: str) -> None:
    """One step of gradient descent on the library's loss: d log softmax / d logits is one-hot minus probabilities."""
    gradient = np.zeros_like(lake.logits)
    _, slopes = treeadv.loss(forests, [f.logprob for f in forests], preset)
    for f, slope in zip(forests, slopes, strict=True):
        for s in range(f.segments):
            path = tuple(t for above in f.path(s)[:-1] for t in f.segment(above).tokens.tolist())
            for at in range(f.start[s], f.start[s + 1]):
                state, _ = lake.saved[path]
                gradient[state] += slope[at] * (np.eye(4)[f.token[at]] - lake.policy(state))
                path = (*path, int(f.token[at]))
    lake.logits -= RATE * gradient


async def train(rule: str = "entropy", preset: str = "treeadv") -> list[float]:
    """The mean reward of each step."""
    options = {"by": "ucb", "width": 4} if rule == "search" else {}
    sampling = SamplingConfig(
        leaves=16, trees=4, rule=rule, rule_options=options, tau=1.0, max_tokens=LIMIT, temperature=1.0, min_gap=1
    )
    lake, rewards = Lake(), []
    for step in range(STEPS):
        forests = [await play(lake, sampling, step * FORESTS + n) for n in range(FORESTS)]
        learn(lake, forests, preset)
        rewards.append(float(np.mean([f.reward.mean() for f in forests])))
        lake.saved, lake.rewards = {}, {}
    return rewards


if __name__ == "__main__":
    for n, reward in enumerate(asyncio.run(train(*sys.argv[1:])), 1):
        print(f"step {n:2}  mean reward {reward:.2f}")
