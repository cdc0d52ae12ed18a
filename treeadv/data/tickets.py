"""The ticket of a reserved slot, which tells a worker what to grow."""

from __future__ import annotations

from dataclasses import dataclass

from treeadv.data.problems import Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """The task of one worker to grow a forest with the id `forest_id`.

    `seed` is the seed of this attempt. `tau` is the fork threshold in nats."""

    forest_id: str
    draw: int
    attempt: int
    problem: Problem
    seed: int
    tau: float
