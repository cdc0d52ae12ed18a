"""Small simulated runs, and services whose durations have an exponential distribution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.simulation.service import Lengths, Service
from treeadv import config as configuration
from treeadv import seeds
from treeadv.config import Config

TOKEN = 0.001  # seconds of a token of `Exponential` lengths: so small that their rounding does not matter


@dataclass(frozen=True, slots=True, kw_only=True)
class ExponentialLengths(Lengths):
    """Lengths with an exponential distribution of mean `median`."""

    def of_forest(self, draw: int, attempt: int, leaves: int) -> list[int]:
        rng = seeds.generator(self.seed, "length", draw, attempt)
        return [max(1, round(rng.expovariate(1 / self.median))) for _ in range(leaves)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExponentialLearner(Service):
    """A learner whose steps have an exponential distribution of mean `learner`, independent of the forests."""

    seed: int = 0

    def learner_seconds(self, step: int, tokens: int) -> float:
        return seeds.generator(self.seed, "step", step).expovariate(1 / self.learner)


def small(**changes: Any) -> Config:
    """Return a configuration of 6 steps of 3 forests with 4 leaves. Keys are section__field."""
    tree: dict[str, dict[str, Any]] = {
        "task": {"families": [{"name": "chain_sum"}]},
        "run": {"steps": 6, "checkpoint_every": 2},
        "sampling": {"leaves": 4, "max_tokens": 100},
        "generator": {"count": 2, "forests": 2, "rows": 8},
        "learner": {"forests_per_step": 3},
        "queue": {"max_staleness": 1},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        tree.setdefault(section, {})[name] = value
    return configuration.build(tree, [], "test")


def queue_network(slots: int, generators: int, steps: int) -> Config:
    """Return a configuration in which a generator draws one branch at a time and a step takes one forest."""
    return small(
        run__steps=steps, run__checkpoint_every=50, sampling__leaves=1, generator__count=generators,
        generator__forests=1, generator__rows=1, learner__forests_per_step=1, queue__max_staleness=slots - 1,
    )  # fmt: skip
