"""The ticket that a worker gets for a reserved slot."""

from __future__ import annotations

from dataclasses import dataclass

from treeadv.data.problems import Problem


@dataclass(frozen=True, slots=True)
class Ticket:
    """One forest to grow. The forest must have this `forest_id`; `seed` is of this attempt alone; `tau` is the fork
    threshold in nats."""

    forest_id: str
    draw: int
    attempt: int
    problem: Problem
    seed: int
    tau: float
