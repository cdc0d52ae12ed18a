"""Tickets: what a generator gets for a reserved slot of the queue."""

from __future__ import annotations

from dataclasses import dataclass

from treeadv.data.problems import Problem


@dataclass(frozen=True, slots=True)
class Ticket:
    """One forest to grow. The forest must have this `forest_id`.

    `seed` belongs to this attempt only; `tau` is the fork threshold in nats."""

    forest_id: str
    draw: int
    attempt: int
    problem: Problem
    seed: int
    tau: float
