"""`python -m benchmarks.bias`: measures the bias of each choice of fork rule and advantage against the exact gradient.

Forests come from the policy of `benchmarks.tabular`, whose gradient G is known. `treeadv.learning.objective` computes
the estimate g of a forest, as in training at ratio 1. It prints one JSON object per line:

  bias       |E g - c G| / |c G| at the best scale c
  state      the same with the best scale for each state. This remainder is a wrong comparison of actions (A-bias); the
             difference to `bias` is only another weighting of the states (S-bias)
  error      the Monte-Carlo standard error of `bias`
  noise      the variance of the estimate of one forest over |c G|^2
  scale      c
  trees      the mean number of trees per forest, top-up roots included (`surprisal`, `one tree`, `no topup` have none)
  truncated  the value of learner.truncated, in a world where a token or the limit ends a sequence. There G is the
             gradient of the expected grade, and own_bias is the bias against the gradient of `own`
"""

from __future__ import annotations

import json
import os
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from rich.console import Console
from rich.progress import Progress

from benchmarks.tabular import LEAVES, STEPS, World, grow, lengths, lose, states_of
from benchmarks.tabular_search import grow_by_search
from treeadv.command_line import run_command, tool_parser
from treeadv.config import SamplingConfig
from treeadv.forest import Forest
from treeadv.jsonl import JsonObject
from treeadv.learning.objective import Objective, evaluate, scales
from treeadv.learning.truncation import treat_truncated
from treeadv.presets import PRESETS, AdvantageSpec
from treeadv.sampling.rules import build_rule
from treeadv.sampling.search_rule import SearchRule

LOST = 0.19  # share of unjudged leaves in the rows with losses
PENALTY_TOKENS = 2
CHUNK = 500  # number of forests that a process grows in one call

Truncated = Literal["graded", "masked", "penalty"]
Specs = Mapping[str, AdvantageSpec]

RULES: dict[str, JsonObject] = {
    "entropy": {"rule": "entropy", "tau": 0.9},
    # Top-up roots do not fork, so they would hide the effect of forks
    "surprisal": {"rule": "surprisal", "tau": 1.3, "topup": False},
    "random": {"rule": "random", "rule_options": {"probability": 0.5}},
    "one tree": {"rule": "entropy", "tau": 0.9, "trees": 1, "topup": False},
    "no forks": {"rule": "none"},
    "backbone": {"rule": "entropy", "tau": 0.9, "split": "backbone"},
    "no topup": {"rule": "entropy", "tau": 0.9, "topup": False},
    "search uniform": {"rule": "search", "rule_options": {"by": "uniform"}},
    "search entropy": {"rule": "search", "rule_options": {"by": "entropy"}},
    "search ucb": {"rule": "search", "rule_options": {"by": "ucb"}},
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


@dataclass(frozen=True, kw_only=True)
class Case:
    """Forests of one kind, and the estimators that are applied to them. A share `lost` of the leaves is not judged.
    With `truncated`, the world has truncated sequences."""

    rule: str
    specs: Specs
    lost: float = 0.0
    truncated: Truncated | None = None

    @property
    def seed(self) -> int:
        """Return a seed that depends on this case only, so that its rows do not depend on the other cases."""
        return zlib.crc32(f"{self.rule} {self.lost} {self.truncated}".encode())


@dataclass(kw_only=True)
class Sums:
    """Sums of the estimates [states, TOKENS] by estimator, over forests."""

    forests: int = 0
    trees: int = 0
    total: dict[str, np.ndarray] = field(default_factory=dict)
    square: dict[str, float] = field(default_factory=dict)

    def add(self, other: Sums) -> None:
        self.forests += other.forests
        self.trees += other.trees
        for name, g in other.total.items():
            self.total[name] = self.total.get(name, 0) + g
            self.square[name] = self.square.get(name, 0.0) + other.square[name]


def estimate(world: World, f: Forest, states: np.ndarray, spec: AdvantageSpec) -> np.ndarray:
    """Return the gradient estimate of one forest [states, TOKENS]: the sum over its tokens of -slope times the gradient
    of log pi with respect to the logits."""
    if spec.tree == "merged":
        f = f.merge_prefixes()
        states = states_of(f)
    o = Objective(spec=spec, room=LEAVES)
    slope = evaluate(f, o, scales([f], o)[0], f.logprob.astype(float)).slope
    out = np.zeros_like(world.prob)
    np.add.at(out, (states, f.token), -slope)
    weight = np.bincount(states, -slope, len(world.prob))
    return out - weight[:, None] * world.prob


def draw(world: World, case: Case, forests: int, rng: np.random.Generator) -> Sums:
    """Return the sums over `forests` forests.

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
    s = SamplingConfig(**{**settings, **RULES[case.rule]})
    sums = Sums()
    for _ in range(forests):
        f, states = _grow(world, s, rng)
        while case.lost and (f := lose(f, case.lost, rng)).judged.sum() < 2:
            f, states = _grow(world, s, rng)
        if case.truncated:
            f = treat_truncated(f, case.truncated, STEPS, PENALTY_TOKENS)
        for name, spec in case.specs.items():
            g = estimate(world, f, states, spec)
            one = Sums(total={name: g}, square={name: float((g**2).sum())})
            sums.add(one)
        sums.add(Sums(forests=1, trees=f.trees))
    return sums


def _grow(world: World, s: SamplingConfig, rng: np.random.Generator) -> tuple[Forest, np.ndarray]:
    is_search = isinstance(build_rule(s.rule, s.rule_options), SearchRule)
    return grow_by_search(world, s, rng) if is_search else grow(world, s, s.tau or 0.0, rng)


def measure(world: World, rule: str, specs: Specs, forests: int, seed: int, lost: float = 0.0) -> Iterator[JsonObject]:
    """Yield the figures of each estimator on the same forests. A share `lost` of their leaves is not judged."""
    case = Case(rule=rule, specs=specs, lost=lost)
    yield from rows(world, case, draw(world, case, forests, np.random.default_rng(seed)))


def rows(world: World, case: Case, sums: Sums) -> Iterator[JsonObject]:
    """Yield a row for each estimator of a case."""
    n = sums.forests
    for name, total in sums.total.items():
        mean, square = total / n, sums.square[name] / n
        row = {"rule": case.rule, "estimator": name, "lost": case.lost, "forests": n, "trees": sums.trees / n}
        row |= _figures(mean, square, world.gradient, n)
        if case.truncated:
            own, target = truncation_target(world, case.truncated)
            row |= {"truncated": case.truncated, "own": own, "own_bias": _figures(mean, square, target, n)["bias"]}
        yield row


def truncation_target(world: World, truncated: Truncated) -> tuple[str, np.ndarray]:
    """Return the objective that training with `learner.truncated` follows, and its exact gradient. The world has a stop
    token."""
    if truncated == "graded":
        return "E R", world.gradient
    if truncated == "penalty":
        penalty = np.clip((STEPS - PENALTY_TOKENS - lengths()) / PENALTY_TOKENS, -1.0, 0.0)
        return "E R + penalty", world.expectation(world.reward + penalty)[1]
    finished = world.stopped(np.arange(len(world.reward))).astype(float)
    (share, by_share), (value, by_value) = world.expectation(finished), world.expectation(world.reward * finished)
    return "E R of finished", (by_value - value / share * by_share) / share


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


def cases() -> list[Case]:
    """Return the cases of the tables in docs/method.md, the quick ones first."""
    # All presets have a constant normaliser, so that the results depend only on the weights of the tokens.
    presets = {
        n: p.advantage.model_copy(update={"normaliser": "constant", "ratio": "token"})
        for n, p in PRESETS.items()
        if "gspo" not in n
    }
    few = {n: presets[n] for n in ("unbiased", "treeadv")}
    more = {"no forks": few | {"tempo": presets["tempo"]}, "backbone": few | {"bpo": presets["bpo"]}}
    by_rule = [Case(rule=rule, specs=more.get(rule, few)) for rule in RULES if rule != "entropy"]
    modes: tuple[Truncated, ...] = ("graded", "masked", "penalty")
    truncated = [Case(rule="entropy", specs={"unbiased": few["unbiased"]}, truncated=mode) for mode in modes]
    lost = Case(rule="entropy", specs=few, lost=LOST)
    return [*by_rule, *truncated, lost, Case(rule="entropy", specs=presets | ONE_CHANGE)]


def _chunk(world: int, number: int, forests: int, seed: list[int]) -> Sums:
    case = cases()[number]
    return draw(World.random(world, stops=case.truncated is not None), case, forests, np.random.default_rng(seed))


def main(argv: Sequence[str] | None = None) -> None:
    p = tool_parser("python -m benchmarks.bias", __doc__)
    p.add_argument("--forests", type=int, default=10_000, help=f"of each case, a multiple of {CHUNK}")
    p.add_argument("--world", type=int, default=0, help="seed of policy and rewards")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--processes", type=int, default=os.cpu_count(), help="the rows do not depend on it")
    args = p.parse_args(argv)
    chunks = -(-args.forests // CHUNK)
    bar = Progress(console=Console(stderr=True), transient=True)
    with ProcessPoolExecutor(args.processes) as pool, bar as progress:
        futures = [
            [pool.submit(_chunk, args.world, number, CHUNK, [args.seed, case.seed, c]) for c in range(chunks)]
            for number, case in enumerate(cases())
        ]
        shown = progress.add_task("forests", total=chunks * CHUNK * len(futures))
        for case, chunks_of_case in zip(cases(), futures, strict=True):
            sums = Sums()
            for chunk in chunks_of_case:
                sums.add(chunk.result())
                progress.advance(shown, CHUNK)
            for row in rows(World.random(args.world, stops=case.truncated is not None), case, sums):
                line = json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()})
                print(line, flush=True)


if __name__ == "__main__":
    sys.exit(run_command(main))
