"""`python -m benchmarks.bias`: measures the bias of each choice of fork rule and advantage against the exact gradient.

The policy is a tabular softmax over 3 tokens and 4 steps with random 0/1 rewards, so that its gradient G is known.
Forests grow by the fork rules of `treeadv.sampling.rules`. `treeadv.learning.objective` computes the estimate g of a
forest, as in training at ratio 1. It prints one JSON object per line:

  bias     |E g - c G| / |c G| at the best scale c
  state    the same with the best scale for each state. This remainder is a wrong comparison of actions (A-bias); the
           difference to `bias` is only another weighting of the states (S-bias)
  error    the Monte-Carlo standard error of `bias`
  noise    the variance of the estimate of one forest over |c G|^2
  scale    c
  trees    the mean number of trees per forest, top-up roots included (`surprisal`, `one tree` and `no topup` have none)
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from treeadv.config import SamplingConfig
from treeadv.forest import Finish, Forest, Verdict
from treeadv.learning.objective import Objective, evaluate, scales
from treeadv.presets import PRESETS, AdvantageSpec
from treeadv.sampling.forking import Forking, split

TOKENS, STEPS, LEAVES = 3, 4, 8
LOST = 0.19  # share of unjudged leaves in the rows with losses
RULES: dict[str, dict[str, Any]] = {
    "entropy": {"rule": "entropy", "tau": 0.9},
    # Top-up roots, which do not fork, would hide the effect of forks
    "surprisal": {"rule": "surprisal", "tau": 1.3, "topup": False},
    "random": {"rule": "random", "rule_options": {"probability": 0.5}},
    "one tree": {"rule": "entropy", "tau": 0.9, "trees": 1, "topup": False},
    "no forks": {"rule": "none"},
    "backbone": {"rule": "entropy", "tau": 0.9, "split": "backbone"},
    "no topup": {"rule": "entropy", "tau": 0.9, "topup": False},
}
_UNBIASED = PRESETS["unbiased"].advantage
ONE_CHANGE = {
    f"unbiased but {key}={value}": _UNBIASED.model_copy(update={key: value})
    for key, value in (
        ("value", "leaf_mean"),
        ("baseline", "forest_mean"),
        ("baseline", "parent_fork"),
        ("baseline", "none"),
        ("scale", "std_unbiased"),
        ("weight", "once"),
        ("weight", "per_leaf"),
    )
}


@dataclass(frozen=True)
class World:
    """The policy at every state (prefix), the reward of every sequence, and the exact gradient. States are numbered in
    base 3 by length."""

    prob: np.ndarray  # [states, TOKENS]
    reward: np.ndarray  # [TOKENS ** STEPS]
    gradient: np.ndarray  # [states, TOKENS] of the expected reward by the logits

    @classmethod
    def random(cls, seed: int) -> World:
        rng = np.random.default_rng(seed)
        states = sum(TOKENS**d for d in range(STEPS))
        logits = rng.normal(0, 1.2, (states, TOKENS))
        prob = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        reward = rng.integers(0, 2, TOKENS**STEPS).astype(float)
        reach = np.zeros(states)
        reach[0] = 1.0
        Q = np.zeros((states, TOKENS))
        for s in range(states):
            for a in range(TOKENS):
                if child(s, a) < states:
                    reach[child(s, a)] = reach[s] * prob[s, a]
        for s in reversed(range(states)):
            for a in range(TOKENS):
                below = child(s, a)
                Q[s, a] = prob[below] @ Q[below] if below < states else reward[below - states]
        V = (prob * Q).sum(1, keepdims=True)
        return cls(prob, reward, reach[:, None] * prob * (Q - V))


def child(state: int, token: int) -> int:
    """Return the state after `token`. States are in breadth-first order: the children of state s are 3 s + 1 to 3 s +
    3. Numbers above the last state are sequences."""
    return TOKENS * state + 1 + token


def grow(world: World, s: SamplingConfig, tau: float, rng: np.random.Generator) -> tuple[Forest, np.ndarray]:
    """Return a graded forest, and the state [T] at which each of its tokens was drawn. Chains fork as in
    `treeadv.sampling`."""
    parent: list[int] = []
    lengths: list[int] = []
    arity: list[int] = []
    budgets: list[int] = []
    tokens: list[int] = []
    states: list[int] = []
    ends: list[int] = []
    entropy = -(world.prob * np.log(world.prob)).sum(1)
    forking = Forking(s, tau)

    def draw(state: int) -> int:
        return int(np.searchsorted(np.cumsum(world.prob[state]), rng.random()))

    def chain(up: int, state: int, depth: int, position: int, budget: int, first: int | None) -> None:
        here, gap = len(parent), 0
        parent.append(up)
        lengths.append(0)
        arity.append(0)
        budgets.append(budget)
        while position < STEPS:
            token = draw(state) if first is None else first
            seed = int(rng.integers(2**31))
            if first is None and forking.forks(
                entropy=float(entropy[state]),
                logprob=float(np.log(world.prob[state, token])),
                budget=budget,
                gap=gap,
                depth=depth,
                position=position,
                seed=seed,
            ):
                arity[here] = s.arity
                for i, part in enumerate(split(budget, s.arity, s.split)):
                    chain(here, state, depth + 1, position, part, token if i == 0 else draw(state))
                return
            first = None
            tokens.append(token)
            states.append(state)
            lengths[here] += 1
            state, position, gap = child(state, token), position + 1, gap + 1
        ends.append(state)

    for budget in split(s.leaves, s.roots):
        chain(-1, 0, 0, 0, budget, None)
    for _ in range(s.leaves - len(ends) if s.topup else 0):
        chain(-1, 0, 0, 0, 1, None)
    T, L, where = len(tokens), len(ends), np.array(states)
    up = np.array(parent, np.int32)
    forest = Forest(  # not checked, because the benchmark draws half a million forests
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
        entropy=entropy[where].astype(np.float32),
        version=np.zeros(T, np.int32),
        leaf_segment=np.flatnonzero(np.array(arity) == 0).astype(np.int32),
        finish=np.full(L, Finish.LENGTH, np.int8),
        reward=world.reward[np.array(ends) - len(world.prob)].astype(np.float32),
        verdict=np.full(L, Verdict.VERIFIED, np.int8),
    )
    return forest, where


def estimate(world: World, f: Forest, states: np.ndarray, spec: AdvantageSpec) -> np.ndarray:
    """Return the gradient estimate of one forest [states, TOKENS]: the sum over its tokens of -slope times the gradient
    of log pi by the logits."""
    if spec.tree == "merged":
        f = f.merge_prefixes()
        states = states_of(f)
    o = Objective(spec=spec, room=LEAVES)
    slope = evaluate(f, o, scales([f], o)[0], f.logprob.astype(float)).slope
    out = np.zeros_like(world.prob)
    np.add.at(out, (states, f.token), -slope)
    weight = np.bincount(states, -slope, len(world.prob))
    return out - weight[:, None] * world.prob


def states_of(f: Forest) -> np.ndarray:
    """Return the state [T] at which each token was drawn."""
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
    """Return the forest after random failures: each leaf is unjudged with probability `share`, independent of its
    text."""
    verdict = np.where(rng.random(f.leaves) < share, Verdict.CRASH, f.verdict).astype(np.int8)
    return replace(f, verdict=verdict, reward=np.where(verdict == Verdict.CRASH, 0, f.reward).astype(np.float32))


def measure(
    world: World, rule: str, specs: dict[str, AdvantageSpec], forests: int, seed: int, lost: float = 0.0
) -> Iterator[dict[str, Any]]:
    """Yield the figures of each estimator on the same forests, of whose leaves the share `lost` is unjudged.

    A forest with fewer than two judged leaves is replaced by a new one, as in the replay queue.
    """
    settings = {
        "leaves": LEAVES,
        "trees": 2,
        "min_gap": 1,
        "min_tail": 1,
        "max_depth": 4,
        "arity": 2,
        "max_tokens": STEPS,
    }
    s = SamplingConfig(**{**settings, **RULES[rule]})
    rng = np.random.default_rng(seed)
    total = {name: np.zeros_like(world.prob) for name in specs}
    square = dict.fromkeys(specs, 0.0)
    trees = 0
    for _ in range(forests):
        f, states = grow(world, s, s.tau or 0.0, rng)
        while lost and (f := lose(f, lost, rng)).judged.sum() < 2:
            f, states = grow(world, s, s.tau or 0.0, rng)
        trees += f.trees
        for name, spec in specs.items():
            g = estimate(world, f, states, spec)
            total[name] += g
            square[name] += float((g**2).sum())
    for name in specs:
        mean = total[name] / forests
        figures = _figures(mean, square[name] / forests, world.gradient, forests)
        yield {"rule": rule, "estimator": name, "lost": lost, "forests": forests, "trees": trees / forests, **figures}


def _figures(mean: np.ndarray, square: float, exact: np.ndarray, n: int) -> dict[str, float]:
    c = float((mean * exact).sum() / (exact**2).sum())
    size = abs(c) * float(np.linalg.norm(exact))
    by_state = (mean * exact).sum(1, keepdims=True) / np.maximum((exact**2).sum(1, keepdims=True), 1e-30)
    noise = (square - float((mean**2).sum())) / size**2
    return {
        "bias": float(np.linalg.norm(mean - c * exact)) / size,
        "state": float(np.linalg.norm(mean - np.maximum(by_state, 0) * exact)) / size,
        "error": float(np.sqrt(noise / n)),
        "noise": noise,
        "scale": c,
    }


def main(argv: list[str]) -> None:
    p = argparse.ArgumentParser(
        prog="python -m benchmarks.bias", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--forests", type=int, default=20_000)
    p.add_argument("--world", type=int, default=0, help="seed of policy and rewards")
    p.add_argument("--seed", type=int, default=0)
    args = p.parse_args(argv)
    world = World.random(args.world)
    # All presets have a constant normaliser, so that the results depend only on the weights of the tokens.
    presets = {
        n: p.advantage.model_copy(update={"normaliser": "constant", "ratio": "token"})
        for n, p in PRESETS.items()
        if "gspo" not in n
    }
    few = {n: presets[n] for n in ("unbiased", "treeadv")}
    cases = {
        "entropy": presets | ONE_CHANGE,
        "surprisal": few,
        "random": few,
        "one tree": few,
        "no forks": few | {"tempo": presets["tempo"]},
        "backbone": few | {"bpo": presets["bpo"]},
        "no topup": few,
    }
    for rule, specs in cases.items():
        for lost in (0.0, LOST) if rule == "entropy" else (0.0,):
            for row in measure(world, rule, specs, args.forests, args.seed, lost):
                print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}), flush=True)


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
