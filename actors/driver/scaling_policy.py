"""How many generators a run wants: a pure state machine. Whoever counts actors feeds it; it never looks at a clock.

Two numbers say who waits for whom. The learner waits (`wait_share` high, fewer forests ready than a step takes): generators are too
few, unless the staleness bound holds them back (`slots_free` 0), when more of them would only wait too. Generators wait (no slot
free, or staleness at its bound) while the learner never does: they are too many. A reason must last `hold` seconds to act, every
act moves by one, and `cooldown` seconds pass before the next, so noise and the delay of a starting node do not make it swing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from treeadv.config import ScalingConfig


@dataclass(frozen=True, slots=True)
class Observation:
    """The run at `now` (seconds, any origin, never backwards).

    count: generators that serve; ready: forests that wait for the learner; need: forests of one step; slots_free: forests that may
    still be admitted under the staleness bound; wait_share: share of the time since the last observation in which the learner waited
    for forests, 0 to 1; staleness and bound: versions, the last step's largest and the largest allowed.
    """

    now: float
    count: int
    ready: int
    need: int
    slots_free: int
    wait_share: float
    staleness: int
    bound: int


@dataclass(frozen=True, slots=True)
class Scaler:
    """`wanted` generators; `lean` (+1 more, -1 fewer, 0 neither) held since `since`; last change of `wanted` at `changed`."""

    wanted: int
    lean: int
    since: float
    changed: float

    @classmethod
    def start(cls, count: int, now: float, rules: ScalingConfig) -> Scaler:
        """A run that begins with `count` generators; its first change comes a cool-down later at the earliest."""
        return cls(clamp(count, rules), 0, now, now)

    def step(self, seen: Observation, rules: ScalingConfig) -> Scaler:
        """The next state; the caller starts or drains generators until their number is its `wanted`."""
        lean = leaning(seen, rules)
        since = self.since if lean == self.lean else seen.now
        bounded = clamp(self.wanted, rules)
        if bounded != self.wanted:  # the bounds were changed under a running run: they hold at once
            return Scaler(bounded, lean, since, seen.now)
        arrived = seen.count == self.wanted  # a node may take minutes to start, and a drain to end
        patient = seen.now - since >= rules.hold and seen.now - self.changed >= rules.cooldown
        moved = clamp(self.wanted + lean, rules)
        if arrived and patient and moved != self.wanted:
            return Scaler(moved, lean, seen.now, seen.now)
        return replace(self, lean=lean, since=since)

    def ask(self, wanted: int, now: float, rules: ScalingConfig) -> Scaler:
        """A person asked for `wanted` generators (`treeadv scale generator=N`); the bounds hold, the cool-down begins anew."""
        return Scaler(clamp(wanted, rules), 0, now, now)


def leaning(seen: Observation, rules: ScalingConfig) -> int:
    """Which way one observation points, ignoring for how long."""
    held_back = seen.slots_free == 0
    if seen.wait_share > rules.wait_high and seen.ready < seen.need and not held_back:
        return 1
    if seen.wait_share < rules.wait_low and seen.ready >= seen.need and (held_back or seen.staleness >= seen.bound):
        return -1
    return 0


def clamp(count: int, rules: ScalingConfig) -> int:
    return min(max(count, rules.min), rules.max)
