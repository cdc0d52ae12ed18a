"""A discrete-event simulation of a run. Only durations are simulated; the decisions are those of the run's own code.

The queue is a real `ReplayStore` on files in a temporary folder, with small forests. The real `ForestsInFlight`,
`Routes` and `ScalingState` decide how many forests a generator grows, where a tree goes, and how many generators run.
The loops of this module stand for those of `actors/driver/pipeline.py`: they wait in simulated time. Here each call of
the queue carries one forest; a run sends forests that are ready together in one call."""

from __future__ import annotations

import itertools
import math
from collections.abc import Generator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import simpy

from actors.driver.in_flight import ForestsInFlight
from actors.driver.scaling_policy import Observation, ScalingState
from benchmarks.simulation.engine import Engine
from benchmarks.simulation.service import Lengths, Service
from treeadv import seeds, wire
from treeadv.config import Config
from treeadv.engines.fleet.routing import Routes
from treeadv.forest import Forest, Verdict
from treeadv.replay.figures import figures
from treeadv.replay.store import ReplayStore
from treeadv.sampling.forking import split

POLL = 1.0  # seconds between two looks of the autoscaler, as in actors/driver/autoscaler.py
Process = Generator[simpy.Event, Any, Any]


@dataclass(slots=True)
class Growth:
    """One attempt at a draw. `version` is that of its first token, or None before it. `ended` is its outcome: trained,
    stale, failed, or "" before its end."""

    draw: int
    attempt: int
    lengths: list[int]
    tokens: int = 0
    version: int | None = None
    ended: str = ""
    end: float = math.inf


@dataclass(eq=False)
class Member:
    """A generator: its engines, one for each server, and the assignment of trees to them."""

    name: str
    engines: dict[str, Engine]
    joined: float
    routes: Routes = field(default_factory=Routes)
    alive: bool = True

    @property
    def free(self) -> int:
        return sum(e.free for e in self.engines.values())


@dataclass(slots=True)
class Use:
    """The seconds in which a part of the run was in use."""

    seconds: float = 0.0


class Simulation:
    """One run. `run()` simulates it to its last step, and the attributes then hold what happened."""

    def __init__(
        self, config: Config, service: Service, lengths: Lengths, *, sharing: float = 0.0, servers: int = 1
    ) -> None:
        """Prepare a run of `config.run.steps` steps with `config.generator.count` generators.

        `sharing` is the share of a forest's tokens that its leaves share, and `servers` the number of engines of one
        generator."""
        self.config, self.service, self._lengths = config, service, lengths
        self._sharing, self._servers = sharing, servers
        self.env = env = simpy.Environment()
        self._queue, self._driver = simpy.Resource(env, 1), simpy.Resource(env, 1)
        self._verifiers = simpy.Resource(env, config.reward.count * config.reward.workers)
        self._room, self._ready = env.event(), env.event()
        self._turn = simpy.Resource(env, 1)
        self._rng = seeds.generator(config.run.seed, "failures")
        self._numbers, self._calls = itertools.count(), itertools.count()
        self.members: list[Member] = []  # take new forests
        self.all_members: list[Member] = []
        self._starting = 0
        self.version = self.step = self.staleness = self.deaths = 0
        self.growths: dict[str, Growth] = {}
        self.used = {name: Use() for name in ("queue", "driver", "reward", "wait", "learner", "publish", "checkpoint")}
        self._wait_began: float | None = None
        self.slots_full, self._slots_changed, self._full = 0.0, 0.0, False
        self.targets: list[tuple[float, int]] = []  # (time, target of the autoscaler) at each change
        self.step_ends: list[float] = []
        self.marks: dict[int, dict[str, float]] = {}  # step -> the totals at its end

    def run(self) -> Simulation:
        with TemporaryDirectory() as folder:
            c = self.config
            settings = c.queue.model_copy(update={"fsync": "none"})
            self.store = ReplayStore(
                str(Path(folder)), settings, forests_per_step=c.learner.forests_per_step, seed=c.run.seed,
                session="simulation", step=0, clock=lambda: self.env.now,
                versions_per_step=c.learner.updates_per_step,
            )  # fmt: skip
            try:
                for _ in range(c.generator.count):
                    self._join()
                self.marks[0] = self.totals()
                if c.scaling.enabled:
                    self.env.process(self._autoscale())
                self.env.run(self.env.process(self._learn()))
            finally:
                self.store.close()
        return self

    def totals(self) -> dict[str, float]:
        """Return the totals of the run at this moment."""
        self._note_slots()
        engines = [e for m in self.all_members for e in m.engines.values()]
        for engine in engines:
            engine.advance()
        return {
            "now": self.env.now,
            **{name: use.seconds for name, use in self.used.items()},
            "slots_full": self.slots_full,
            "busy": sum(e.busy for e in engines),
            "row_seconds": sum(e.row_seconds for e in engines),
            "drawn": sum(e.tokens for e in engines),
            "engine_seconds": self._engine_seconds,
            "trained": self.step * self.config.learner.forests_per_step,
        }

    # ---- generators --------------------------------------------------------------------------------------------------
    _gone_seconds = 0.0  # time of engines that have ended

    @property
    def _engine_seconds(self) -> float:
        """Return the time for which engines existed."""
        return self._gone_seconds + sum(self.env.now - m.joined for m in self.all_members if m.alive) * self._servers

    def _join(self) -> None:
        name = f"generator-{next(self._numbers)}"
        rows = self.config.generator.rows
        engines = {str(i): Engine(self.env, self.service, rows) for i in range(self._servers)}
        member = Member(name, engines, self.env.now)
        self.members.append(member)
        self.all_members.append(member)
        if math.isfinite(self.service.failure):
            self.env.process(self._fail(member))
        ForestsInFlight(self.config, lambda it: self.env.process(self._loop(member, it)))

    def _fail(self, member: Member) -> Process:
        """Kill a generator after a random time and start its successor."""
        yield self.env.timeout(self._rng.expovariate(1 / self.service.failure))
        if member in self.members:
            self.members.remove(member)
            self._end(member)
            self.deaths += 1
            self._starting += 1
            yield self.env.timeout(self.service.start)
            self._starting -= 1
            self._join()

    def _end(self, member: Member) -> None:
        member.alive = False
        self._gone_seconds += (self.env.now - member.joined) * self._servers
        for engine in member.engines.values():
            engine.end()

    def _loop(self, member: Member, in_flight: ForestsInFlight) -> Process:
        """Grow, grade and admit one forest after another."""
        while member in self.members:
            in_flight.reserving += 1
            record = yield from self._reserve(member)
            in_flight.reserving -= 1
            yield from self._occupy(self._driver, "driver", self.service.driver)
            fid = record.forest_id
            lengths = self._lengths.of_forest(record.draw, record.attempt, self.config.sampling.leaves)
            growth = self.growths[fid] = Growth(record.draw, record.attempt, lengths)
            if not (yield from self._grow(member, fid, growth)):
                yield from self._occupy(self._queue, "queue", self.service.queue)
                self.store.fail(fid, "generator died")
                growth.ended, growth.end = "failed", self.env.now
                self._notify()
                continue
            began, ended = growth.version, self.version
            assert began is not None, f"forest {fid} has no token"
            yield from self._occupy(self._verifiers, "reward", self.service.grade * len(lengths))
            yield from self._occupy(self._queue, "queue", self.service.queue)
            self.store.admit(fid, _batch(fid, began, ended))
            self._notify()
            if not in_flight.keeps_loop(member.free):
                return

    def _reserve(self, member: Member) -> Process:
        request = f"call-{next(self._calls)}"
        yield from self._occupy(self._queue, "queue", self.service.queue)
        with self._turn.request() as turn:  # the first call waits for a slot, as in actors/reservations.py
            yield turn
            while (record := self.store.reserve(member.name, request, str)) is None:
                yield self._room
        self._note_slots()
        return record

    def _grow(self, member: Member, fid: str, growth: Growth) -> Process:
        """Draw the trees of a forest. Returns whether the generator survived."""
        shares = split(len(growth.lengths), self.config.sampling.roots)
        ends = itertools.accumulate(shares)
        parts = [growth.lengths[end - n : end] for n, end in zip(shares, ends, strict=True)]
        trees = [self.env.process(self._tree(member, fid, str(i), leaves, growth)) for i, leaves in enumerate(parts)]
        yield self.env.all_of(trees)
        member.routes.release(fid)
        return all(tree.value for tree in trees)

    def _tree(self, member: Member, fid: str, tree: str, lengths: list[int], growth: Growth) -> Process:
        """Draw a root segment and then the leaves below it. The root is as long as gives the forest its sharing."""
        if not member.alive:
            return False
        engine = member.engines[member.routes.server_of(fid, tree, member.engines, member.engines)]

        def started() -> None:
            growth.version = self.version if growth.version is None else growth.version

        root = 0
        if len(lengths) > 1:
            mean = sum(lengths) / len(lengths)
            root = min(min(lengths) - 1, round(self._sharing * mean * len(lengths) / (len(lengths) - 1)))
        if root and not (yield engine.draw([root], started)):
            return False
        growth.tokens += root + sum(lengths) - root * len(lengths)
        return (yield engine.draw([n - root for n in lengths], started))

    # ---- queue -------------------------------------------------------------------------------------------------------
    def _occupy(self, resource: simpy.Resource, name: str, seconds: float) -> Process:
        """Use a part of the run that serves one call after another."""
        if seconds <= 0:
            return
        with resource.request() as turn:
            yield turn
            yield self.env.timeout(seconds)
        self.used[name].seconds += seconds

    def _notify(self) -> None:
        """Wake the lease and the first reservation that wait."""
        self._notify_room()
        ready, self._ready = self._ready, self.env.event()
        ready.succeed()

    def _notify_room(self) -> None:
        self._note_slots()
        room, self._room = self._room, self.env.event()
        room.succeed()

    def _note_slots(self) -> None:
        """Add up the time in which no slot is free."""
        if self._full:
            self.slots_full += self.env.now - self._slots_changed
        self._slots_changed, self._full = self.env.now, self.store.free_slots == 0

    # ---- learner -----------------------------------------------------------------------------------------------------
    def _learn(self) -> Process:
        run, learner = self.config.run, self.config.learner
        while self.step < run.steps:
            lease = yield from self._lease(learner.forests_per_step)
            ages = [self.version - self.store.ledger.live[f].payload.oldest_version for f in lease.forest_ids]
            tokens = sum(self.growths[f].tokens for f in lease.forest_ids)
            yield from self._work("learner", self.service.learner_seconds(self.step, tokens))
            self.version += learner.updates_per_step
            self.step += 1
            for engine in (e for m in self.all_members if m.alive for e in m.engines.values()):
                engine.pause(self.service.load)
            yield from self._work("publish", self.service.publish)
            yield from self._occupy(self._queue, "queue", self.service.queue)
            self.store.ack(lease.lease_id, self.step)
            for fid in lease.forest_ids:
                self.growths[fid].ended, self.growths[fid].end = "trained", self.env.now
            self._notify()
            self.staleness = max(ages)
            if self.step % run.checkpoint_every == 0 or self.step == run.steps:
                yield from self._work("checkpoint", self.service.checkpoint)
                self.store.commit(self.step)
            self.step_ends.append(self.env.now)
            self.marks[self.step] = self.totals()

    def _lease(self, n: int) -> Process:
        self._wait_began = self.env.now
        while True:
            yield from self._occupy(self._queue, "queue", self.service.queue)
            for dropped in self.store.ledger.stale(self.version, self.config.queue.max_staleness):
                growth = self.growths[dropped.forest_id]
                growth.ended, growth.end = "stale", self.env.now
            used, ready = self.store.ledger.slots_used, self._ready
            record = self.store.lease(n, self.version, lambda _: None)
            if record is None or self.store.ledger.slots_used < used:
                self._notify_room()
            if record is not None:
                break
            yield ready
        self.used["wait"].seconds += self.env.now - self._wait_began
        self._wait_began = None
        return record

    def _work(self, name: str, seconds: float) -> Process:
        yield self.env.timeout(seconds)
        self.used[name].seconds += seconds

    # ---- autoscaler --------------------------------------------------------------------------------------------------
    def _autoscale(self) -> Process:
        options = self.config.scaling
        state = ScalingState.start(self.config.generator.count, self.env.now, options)
        observed, waited = self.env.now, self._waited
        self._scale(state.target)
        while True:
            yield self.env.timeout(POLL)
            now = self.env.now
            if now - observed < options.interval:
                continue
            share = (self._waited - waited) / (now - observed)
            observed, waited = now, self._waited
            counts = figures(self.store)
            state = state.observe(
                Observation(
                    now=now, count=len(self.members), ready=counts["states"]["ready"],
                    need=self.config.learner.forests_per_step, slots_free=counts["slots_free"], wait_share=share,
                    staleness=self.staleness, bound=self.config.queue.max_staleness,
                ), options,
            )  # fmt: skip
            self._scale(state.target)

    @property
    def _waited(self) -> float:
        """Return the seconds that the learner has waited for forests, with a wait that still lasts."""
        now = self.env.now - self._wait_began if self._wait_began is not None else 0.0
        return self.used["wait"].seconds + now

    def _scale(self, target: int) -> None:
        """Start generators, or retire the newest, until their number is `target`."""
        if not self.targets or self.targets[-1][1] != target:
            self.targets.append((self.env.now, target))
        while len(self.members) + self._starting < target:
            self._starting += 1
            self.env.process(self._start())
        while len(self.members) + self._starting > target and self.members:
            self._retire(self.members[-1])

    def _start(self) -> Process:
        yield self.env.timeout(self.service.start)
        self._starting -= 1
        self._join()

    def _retire(self, member: Member) -> None:
        """Give a generator no more work. It finishes the forests that it grows."""
        self.members.remove(member)


@lru_cache(256)
def _template(began: int, ended: int) -> pa.RecordBatch:
    forest = Forest.assemble(
        forest_id="", prompt_id="p", gold="1", verifier="exact", prompt=[1], parent=[-1, -1], lengths=[2, 2],
        token=[1] * 4, logprob=[-1.0] * 4, version=[began, ended] * 2,
    )  # fmt: skip
    return wire.to_batch([forest.with_rewards([0.0, 1.0], [Verdict.VERIFIED] * 2)])


def _batch(fid: str, began: int, ended: int) -> pa.RecordBatch:
    """Return a graded forest of two leaves whose first tokens are of policy version `began` and whose last tokens are
    of `ended`. It stands for a forest of any size, because the decisions of the queue read only its versions."""
    template = _template(began, ended)
    place = template.schema.get_field_index("forest_id")
    field = template.schema.field(place)
    return template.set_column(place, field, pa.array([fid], field.type))
