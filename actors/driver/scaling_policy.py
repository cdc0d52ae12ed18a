"""The policy for the number of generators of a run. It is a pure state machine: the caller passes observations and
times.

The learner waits if `wait_share` is high and fewer forests are ready than a step takes. The run then has too few
generators, unless the staleness bound holds them back (`slots_free` is 0): additional generators would wait too. The
generators wait if no slot is free or staleness is at its bound. If the generators wait and the learner does not, the
run has too many generators.

Inside one step the learner first waits and then computes, so the share of a short time is near 1 or near 0. The policy
therefore averages the share over about `min_duration`, since the number of generators became right. The number changes
when the same reason has lasted `min_duration` seconds. Each change is by one, and `cooldown` seconds pass before the
next change. So noise and the delay of a starting node cause no oscillation."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from treeadv.config import ScalingConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """The state of the run at `now` (seconds from any origin, never decreasing).

    count: generators that serve; ready: forests that wait for the learner; need: forests of one step; slots_free:
    forests that the staleness bound still admits; wait_share: share of the time since the last observation in which
    the learner waited for forests, 0 to 1; staleness: largest of the last step, in versions; bound: the largest
    allowed staleness.
    """

    now: float
    count: int
    ready: int
    need: int
    slots_free: int
    wait_share: float
    staleness: int
    bound: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingState:
    """The decision of the autoscaler.

    `target` is the number of generators to run; it changed last at time `changed`. `direction` says whether
    observations ask for more (+1), fewer (-1) or neither (0). It has been the same since time `since`. `wait_share` is
    the mean share of the time in which the learner waits, up to time `observed`; None before the first observation."""

    target: int
    direction: int
    since: float
    changed: float
    wait_share: float | None = None
    observed: float = 0.0

    @classmethod
    def start(cls, count: int, now: float, options: ScalingConfig) -> ScalingState:
        """Return the state of a run that starts with `count` generators. The first change comes after `cooldown`."""
        return cls(target=within_bounds(count, options), direction=0, since=now, changed=now)

    def observe(self, seen: Observation, options: ScalingConfig) -> ScalingState:
        """Return the next state. The caller starts or retires generators until their number is its `target`."""
        seen = replace(seen, wait_share=self._mean_share(seen, options))
        direction = direction_of(seen, options)
        since = self.since if direction == self.direction else seen.now
        bounded = within_bounds(self.target, options)
        if bounded != self.target:  # the bounds changed during the run, and they apply at once
            return ScalingState(target=bounded, direction=direction, since=since, changed=seen.now)
        # The last change must be complete: a node may take minutes to start, and a generator minutes to finish work.
        arrived = seen.count == self.target
        lasted = seen.now - since >= options.min_duration and seen.now - self.changed >= options.cooldown
        moved = within_bounds(self.target + direction, options)
        if arrived and lasted and moved != self.target:
            return ScalingState(target=moved, direction=direction, since=seen.now, changed=seen.now)
        return replace(self, direction=direction, since=since, wait_share=seen.wait_share, observed=seen.now)

    def _mean_share(self, seen: Observation, options: ScalingConfig) -> float:
        """Return the mean of the shares in which an observation has lost 63 % of its weight after `min_duration`.

        Observations with another number of generators than the target do not count."""
        if self.wait_share is None or seen.count != self.target:
            return seen.wait_share
        weight = -math.expm1(-(seen.now - self.observed) / options.min_duration)
        return self.wait_share + (seen.wait_share - self.wait_share) * weight

    def set_target(self, count: int, now: float, options: ScalingConfig) -> ScalingState:
        """Return the state after a request for `count` generators (`treeadv scale generator=N`). The bounds apply, and
        a new `cooldown` starts."""
        return ScalingState(target=within_bounds(count, options), direction=0, since=now, changed=now)


def direction_of(seen: Observation, options: ScalingConfig) -> int:
    """Return whether one observation asks for more generators (1), fewer (-1) or neither (0)."""
    held_back = seen.slots_free == 0
    if seen.wait_share > options.wait_high and seen.ready < seen.need and not held_back:
        return 1
    if seen.wait_share < options.wait_low and seen.ready >= seen.need and (held_back or seen.staleness >= seen.bound):
        return -1
    return 0


def within_bounds(count: int, options: ScalingConfig) -> int:
    return min(max(count, options.min), options.max)
