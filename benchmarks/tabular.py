"""A policy whose exact gradient is known: a softmax over 3 tokens, for 4 steps, with random rewards.

The fork rules of `treeadv.sampling` grow forests from this policy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from treeadv.config import SamplingConfig
from treeadv.forest import Finish, Forest, Verdict
from treeadv.sampling.forking import Forking, split

TOKENS, STEPS, LEAVES = 3, 4, 8
_STATES = sum(TOKENS**d for d in range(STEPS))
_NODES = _STATES + TOKENS**STEPS


@dataclass(frozen=True, kw_only=True)
class World:
    """The policy by prefix, and the rewards. Prefixes are numbered in breadth-first order. A prefix of fewer than
    `STEPS` tokens is a state, in which a next token is drawn. With `stops`, token 0 ends a sequence. A sequence that
    reaches `STEPS` tokens without token 0 is then truncated and has reward 0."""

    prob: np.ndarray  # [states, TOKENS]
    reward: np.ndarray  # [prefixes], used only at the end of a sequence
    stops: bool = False

    @classmethod
    def random(cls, seed: int, stops: bool = False) -> World:
        rng = np.random.default_rng(seed)
        logits = rng.normal(0, 1.2, (_STATES, TOKENS))
        prob = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        reward = np.zeros(_NODES)
        if stops:
            world = cls(prob=prob, reward=reward, stops=True)
            ended = world.stopped(np.arange(_NODES))
            return cls(prob=prob, reward=np.where(ended, rng.integers(0, 2, _NODES), 0).astype(float), stops=True)
        reward[_STATES:] = rng.integers(0, 2, TOKENS**STEPS)
        return cls(prob=prob, reward=reward)

    @cached_property
    def cumulative(self) -> np.ndarray:
        """Return the cumulative probabilities of the tokens [states, TOKENS]."""
        return np.cumsum(self.prob, 1)

    @cached_property
    def entropy(self) -> np.ndarray:
        """Return the entropy of the next token in nats [states]."""
        return -(self.prob * np.log(self.prob)).sum(1)

    @cached_property
    def gradient(self) -> np.ndarray:
        """Return the gradient [states, TOKENS] of the expected reward with respect to the logits."""
        return self.expectation(self.reward)[1]

    def stopped(self, prefix: np.ndarray) -> np.ndarray:
        """Return whether the last token of each prefix ended the sequence."""
        return self.stops & (prefix > 0) & ((prefix - 1) % TOKENS == 0)

    def ends(self, prefix: int) -> bool:
        """Return whether the sequence ends with this prefix."""
        return prefix >= _STATES or bool(self.stops and prefix and (prefix - 1) % TOKENS == 0)

    def expectation(self, reward: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the expectation of a reward [prefixes] and its gradient [states, TOKENS] with respect to the logits.
        Both are exact."""
        reach, V = np.zeros(_NODES), reward.astype(float)
        reach[0] = 1.0
        live = [s for s in range(_STATES) if not self.ends(s)]
        for s in live:
            reach[child(s, 0) : child(s, TOKENS)] = reach[s] * self.prob[s]
        Q = np.zeros((_STATES, TOKENS))
        for s in reversed(live):
            Q[s] = V[child(s, 0) : child(s, TOKENS)]
            V[s] = self.prob[s] @ Q[s]
        value = (self.prob * Q).sum(1, keepdims=True)
        return float(V[0]), reach[:_STATES, None] * self.prob * (Q - value)


def lengths() -> np.ndarray:
    """Return the number of tokens of each prefix."""
    return np.repeat(np.arange(STEPS + 1), [TOKENS**d for d in range(STEPS + 1)])


def child(state: int, token: int) -> int:
    """Return the prefix after `token`. Prefixes are in breadth-first order: the prefixes after s are 3 s + 1 to 3 s +
    3."""
    return TOKENS * state + 1 + token


def grow(world: World, s: SamplingConfig, tau: float, rng: np.random.Generator) -> tuple[Forest, np.ndarray]:
    """Return a graded forest, and the state [T] in which each of its tokens was drawn. The chains fork by the rules of
    `treeadv.sampling`."""
    parent: list[int] = []
    lengths: list[int] = []
    arity: list[int] = []
    budgets: list[int] = []
    tokens: list[int] = []
    states: list[int] = []
    last: list[int] = []
    forking = Forking(s, tau)

    def draw(state: int) -> int:
        return int(np.searchsorted(world.cumulative[state], rng.random()))

    def chain(up: int, state: int, depth: int, position: int, budget: int, first: int | None) -> None:
        segment, gap = len(parent), 0
        parent.append(up)
        lengths.append(0)
        arity.append(0)
        budgets.append(budget)
        while not world.ends(state):
            token = draw(state) if first is None else first
            seed = int(rng.integers(2**31))
            if first is None and forking.forks(
                entropy=float(world.entropy[state]),
                logprob=float(np.log(world.prob[state, token])),
                budget=budget,
                gap=gap,
                depth=depth,
                position=position,
                seed=seed,
            ):
                arity[segment] = s.arity
                for i, share in enumerate(split(budget, s.arity, s.split)):
                    chain(segment, state, depth + 1, position, share, token if i == 0 else draw(state))
                return
            first = None
            tokens.append(token)
            states.append(state)
            lengths[segment] += 1
            state, position, gap = child(state, token), position + 1, gap + 1
        last.append(state)

    for budget in split(s.leaves, s.roots):
        chain(-1, 0, 0, 0, budget, None)
    for _ in range(s.leaves - len(last) if s.topup else 0):
        chain(-1, 0, 0, 0, 1, None)
    T, L, where = len(tokens), len(last), np.array(states)
    up = np.array(parent, np.int32)
    forest = Forest(  # not checked, because the benchmark draws many forests
        forest_id="f",
        prompt_id="p",
        gold="",
        verifier="exact",
        meta="",
        rule=s.rule,
        predictable=True,
        tau=tau,
        temperature=1.0,
        prompt=np.zeros(1, np.int32),
        parent=up,
        start=np.cumsum([0, *lengths], dtype=np.int32),
        tree=(np.cumsum(up == -1) - 1).astype(np.int32),
        arity=np.array(arity, np.int32),
        budget=np.array(budgets, np.int32),
        token=np.array(tokens, np.int32),
        logprob=np.log(world.prob[where, tokens]).astype(np.float32),
        entropy=world.entropy[where].astype(np.float32),
        version=np.zeros(T, np.int32),
        leaf_segment=np.flatnonzero(np.array(arity) == 0).astype(np.int32),
        finish=np.where(world.stopped(np.array(last)), Finish.STOP, Finish.LENGTH).astype(np.int8),
        reward=world.reward[last].astype(np.float32),
        verdict=np.full(L, Verdict.VERIFIED, np.int8),
    )
    return forest, where


def states_of(f: Forest) -> np.ndarray:
    """Return the state [T] in which each token was drawn."""
    out = np.zeros(f.tokens, int)
    after = np.zeros(f.segments, int)
    for s in range(f.segments):
        state = int(after[f.parent[s]]) if f.parent[s] >= 0 else 0
        for t in range(f.start[s], f.start[s + 1]):
            out[t] = state
            state = child(state, int(f.token[t]))
        after[s] = state
    return out


def lose(f: Forest, share: float, rng: np.random.Generator) -> Forest:
    """Return the forest after random failures of the verifier. Each leaf is unjudged with probability `share`,
    independently of its text."""
    verdict = np.where(rng.random(f.leaves) < share, Verdict.CRASH, f.verdict).astype(np.int8)
    return replace(f, verdict=verdict, reward=np.where(verdict == Verdict.CRASH, 0, f.reward).astype(np.float32))
