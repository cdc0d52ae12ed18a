"""The classes of the actors of a run."""

from __future__ import annotations

from dataclasses import dataclass

from actors.generator import Generator
from actors.learner import Learner
from actors.replay_queue import ReplayQueue
from actors.reward import RewardActor


@dataclass(frozen=True, slots=True, kw_only=True)
class Roles:
    """The class of each role. A benchmark replaces them by subclasses that measure or that compute no model."""

    queue: type[ReplayQueue] = ReplayQueue
    generator: type[Generator] = Generator
    reward: type[RewardActor] = RewardActor
    learner: type[Learner] = Learner
