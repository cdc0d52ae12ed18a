"""The figures of a simulated run: rates, shares of the time, and drops by the length of the answers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from benchmarks.simulation.model import Growth, Simulation

DECILES = 10
FOLLOWED = 0.5  # share of the draws that are followed to their end; later ones may still be growing when the run ends


def figures(s: Simulation, skip: int) -> dict[str, Any]:
    """Return the figures of a simulation without its first `skip` steps. Shares are of the time of these steps."""
    first, last = s.marks[skip], s.marks[s.step]
    over = {name: last[name] - first[name] for name in last}
    seconds, engine_seconds = over["now"], over["engine_seconds"]
    verifiers = s.config.reward.count * s.config.reward.workers
    shares = {
        "queue": over["queue"] / seconds,
        "driver": over["driver"] / seconds,
        "reward": over["reward"] / seconds / verifiers,
        "learner": 1 - over["wait"] / seconds,
        "generators": over["busy"] / engine_seconds,
        "slots": over["slots_full"] / seconds,
    }
    attempts = [g for g in s.growths.values() if g.ended and g.end > first["now"]]
    stale = [g for g in attempts if g.ended == "stale"]
    return {
        "forests_per_s": over["trained"] / seconds,
        "learner_wait": over["wait"] / seconds,
        "generator_idle": max(0.0, 1 - shares["generators"]),  # rounding may give less than 0
        "rows_used": over["row_seconds"] / engine_seconds / s.config.generator.rows,
        **{f"{name}_used": share for name, share in shares.items() if name not in ("generators", "learner")},
        "saturated": saturated(shares),
        "stale_share": len(stale) / max(1, len(attempts)),
        "stale_tokens": sum(g.tokens for g in stale) / max(1, sum(g.tokens for g in attempts)),
        "trained_length": _mean_length(attempts, "trained") / _mean_length(_first_attempts(s), None),
        "stale_by_length": stale_by_length(attempts),
        "untrained_by_length": untrained_by_length(s),
        "deaths": s.deaths,
    }


def saturated(shares: dict[str, float]) -> str:
    """Return what limits the run: the single resource that works nearly all the time, or else the slots."""
    busiest = max(("queue", "driver", "reward", "learner", "generators"), key=shares.__getitem__)
    return busiest if shares[busiest] >= 0.95 or shares["slots"] < 0.5 else "slots"


def knee(rates: Sequence[tuple[int, float]], share: float = 0.95) -> int:
    """Return the smallest number of generators with at least `share` of the largest rate. `rates` holds (number of
    generators, forests per second)."""
    best = max(rate for _, rate in rates)
    return min(n for n, rate in rates if rate >= share * best)


def longest(growth: Growth) -> int:
    """Return the tokens of the longest leaf, which determine how long a forest grows."""
    return max(growth.lengths)


def by_length(growths: Sequence[Growth], counted: Sequence[bool]) -> list[float | None]:
    """Return the share of the growths that are counted in each decile of the longest leaf, the shortest first."""
    order = sorted(range(len(growths)), key=lambda i: (longest(growths[i]), growths[i].draw, growths[i].attempt))
    shares: list[float | None] = []
    for d in range(DECILES):
        decile = order[d * len(order) // DECILES : (d + 1) * len(order) // DECILES]
        shares.append(round(sum(counted[i] for i in decile) / len(decile), 4) if decile else None)
    return shares


def stale_by_length(attempts: Sequence[Growth]) -> list[float | None]:
    """Return the share of the attempts that were dropped as stale, by decile of the length."""
    return by_length(attempts, [g.ended == "stale" for g in attempts])


def untrained_by_length(s: Simulation) -> list[float | None]:
    """Return the share of the prompts that are not trained at the end of the run, by decile of the length of their
    first attempt. Only the first `FOLLOWED` of the draws count."""
    trained = {g.draw for g in s.growths.values() if g.ended == "trained"}
    firsts = _first_attempts(s)
    firsts = [g for g in firsts if g.draw < FOLLOWED * len(firsts)]
    return by_length(firsts, [g.draw not in trained for g in firsts])


def _first_attempts(s: Simulation) -> list[Growth]:
    return [g for g in s.growths.values() if g.attempt == 0]


def _mean_length(growths: Sequence[Growth], ended: str | None) -> float:
    """Return the mean length of the leaves of the growths that ended in this way; None stands for all of them."""
    lengths = [n for g in growths if ended is None or g.ended == ended for n in g.lengths]
    return sum(lengths) / len(lengths) if lengths else math.nan


def scaling_figures(s: Simulation) -> dict[str, Any]:
    """Return what the autoscaler did. `reversals` counts the changes of direction, `settled_s` is the time of the last
    change, and `target_low` and `target_high` are the bounds of the target in the second half of the time."""
    changes = [b - a for (_, a), (_, b) in itertools.pairwise(s.targets)]
    half = s.env.now / 2
    late = [n for t, n in s.targets if t >= half] + [[n for t, n in s.targets if t < half][-1]]
    return {
        "seconds": s.env.now,
        "changes": len(changes),
        "reversals": sum(a * b < 0 for a, b in itertools.pairwise(changes)),
        "settled_s": s.targets[-1][0],
        "target_low": min(late),
        "target_high": max(late),
        "target": s.targets[-1][1],
    }
