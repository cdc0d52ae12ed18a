"""The rules of `queue.selection`. A rule selects the ready forests of a lease."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

import numpy as np

from treeadv.extensions import load_extension
from treeadv.replay.live import Entry
from treeadv.seeds import derive

# A rule gets the ready forests in the order of admission, with the run's seed and the number of the lease as seeds.
Rule: TypeAlias = Callable[[Sequence[Entry], tuple[int, int]], list[Entry]]

RULES = {name: f"{__name__}:{name}" for name in ("fifo", "freshest", "priority")}


def selection_rule(name: str) -> Rule:
    """Return the rule called `name`, a key of `RULES` or `module:Name`. Raises `BadInput` for an unknown name."""
    return cast(Rule, load_extension("queue.selection", name, RULES))


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """The condition for a forest that the next step must not make stale.

    The forest is reserved since step `since`, so the next step makes it stale. Earlier attempts at its prompt were
    stale at least `drops` times; None stands for no such forest. An attempt that a resume ended counts as stale."""

    since: int
    drops: int | None

    def __call__(self, e: Entry) -> bool:
        return (
            self.drops is not None and e.since == self.since and e.reserved.attempt - e.reserved.failures >= self.drops
        )


NOTHING_DUE = Due(since=0, drops=None)


def choose(ready: Sequence[Entry], n: int, rule: Rule, seed: tuple[int, int], due: Due = NOTHING_DUE) -> list[Entry]:
    """Return `n` of the ready forests in training order, or all of them if fewer than `n` are ready.

    Forests that were leased before a resume come first, in the order of those leases. The forests that are `due`
    follow in the order of admission. `rule` orders the other forests."""
    first = sorted((e for e in ready if e.turn is not None), key=lambda e: e.turn or 0)
    rest = sorted((e for e in ready if e.turn is None), key=lambda e: e.order)
    return (first + [e for e in rest if due(e)] + rule([e for e in rest if not due(e)], seed))[:n]


def fifo(ready: Sequence[Entry], seed: tuple[int, int]) -> list[Entry]:
    """Return the forests in the order of admission."""
    return list(ready)


def freshest(ready: Sequence[Entry], seed: tuple[int, int]) -> list[Entry]:
    """Sort the forests by the version of their oldest token, newest first."""
    return sorted(ready, key=lambda e: -e.payload.oldest_version)


def priority(ready: Sequence[Entry], seed: tuple[int, int]) -> list[Entry]:
    """Draw the forests without replacement, in proportion to their advantage mass.

    The draw sorts by u^(1/mass) with u uniform, largest first (Efraimidis and Spirakis 2006)."""
    uniform = np.random.default_rng(derive(*seed)).random(len(ready))
    masses = [e.payload.mass for e in ready]
    keys = [math.log(1.0 - u) / mass if mass > 0 else -math.inf for u, mass in zip(uniform, masses, strict=True)]
    return [ready[i] for i in sorted(range(len(ready)), key=lambda i: -keys[i])]
