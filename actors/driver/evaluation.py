"""The evaluation during training: a generator answers the held-out problems between its forests.

The generator keeps the weights of the evaluated step until it has answered, so an evaluation has one policy version.
The learner does not wait for the evaluation. The other generators take new weights and grow forests meanwhile. One
evaluation runs at a time. The driver skips an evaluation if every generator has newer weights before the evaluation
can start. It never skips the evaluation of the last step."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Protocol, cast

import pyarrow as pa
from ray import ObjectRef
from ray.actor import ActorProxy
from ray.exceptions import ObjectLostError, RayTaskError

from actors.driver.attempt_outcome import EndRequest
from actors.driver.grading import Grading
from actors.driver.in_flight import ForestsInFlight
from actors.driver.liveness import ACTOR_LOST
from actors.driver.weight_sync import WeightSync
from actors.driver.worker_group import WorkerGroup
from actors.generator import Generator
from treeadv.config import Config
from treeadv.data.tickets import Ticket
from treeadv.engines.base import EngineGone, EngineLost, PathTooLong
from treeadv.errors import BadInput, one_line, single_errors
from treeadv.evaluation.book import EvaluationBook
from treeadv.evaluation.scores import Result, Score, score
from treeadv.evaluation.sets import held_out, sets_of, tickets
from treeadv.jsonl import JsonObject
from treeadv.storage.run_folder import RunFolder
from treeadv.visible import visible_logger

log = visible_logger(__name__)


class Actors(Protocol):
    """The part of the cluster that an evaluation uses."""

    weights: WeightSync
    generators: WorkerGroup[Generator]
    grading: Grading


class Display(Protocol):
    """An object that shows the record of an evaluation. In a run it is the recorder."""

    def show_evaluation(self, record: JsonObject) -> None: ...


class Lost(Exception):
    """The generator that answers the problems is lost. The message is the cause."""


class Evaluations:
    """The evaluations of one attempt at a run. `offer` requests an evaluation, and `run` carries it out."""

    def __init__(self, config: Config, folder: RunFolder) -> None:
        self._config = config
        self.book = EvaluationBook(config, folder)
        self._sets = sets_of(config) if config.eval.every else []
        self._waiting: tuple[int, int] | None = None  # step and version of the evaluation that waits
        self._running: int | None = None  # step of the evaluation that runs
        self._claimed: ActorProxy[Generator] | None = None
        self._offered = asyncio.Event()
        self._settled = asyncio.Event()
        self._settled.set()
        self.skipped = 0

    @property
    def steps(self) -> set[int]:
        """Return the steps whose evaluation runs or waits. Their checkpoints must stay, because one of them may become
        the best."""
        return {s for s in (self._running, self._waiting and self._waiting[0]) if s is not None}

    def offer(self, cluster: Actors, step: int, version: int) -> None:
        """Request an evaluation of the weights after `step`, if the configuration asks for one.

        `version` is the policy version of these weights. A generator that is free keeps these weights from now on."""
        if not self.book.lacks(step):
            return
        if self._waiting:
            self._skip(self._waiting[0], f"the evaluation of step {self._running} still runs")
        self._waiting = (step, version)
        self._settled.clear()
        self._offered.set()
        if self._running is None:
            self._claim(cluster)

    async def run(self, cluster: Actors, recorder: Display, end_request: EndRequest) -> None:
        """Carry out the requested evaluations until cancelled."""
        self.book.keep_best()
        while await self._offered.wait():
            if self._waiting is None:
                self._offered.clear()
                self._settled.set()
                continue
            (step, version), generator = self._waiting, self._claimed or self._claim(cluster)
            if generator is None:
                await self._wait_for_member(cluster, step, version)
                continue
            self._waiting, self._running, self._claimed = None, step, None
            try:
                began = time.monotonic()
                found = await self._ask(cluster, generator, version)
                record = await asyncio.to_thread(self.book.add, step, version, time.monotonic() - began, found)
                recorder.show_evaluation(record)
            except Lost as fault:
                log.warning("the evaluation of step %d lost its generator (%s)", step, fault)
                self._waiting = self._waiting or (step, version)
            finally:
                self._running = None
                cluster.weights.unpin(generator)
            if self.book.early_end:
                end_request.end_early()

    async def settled(self, end_request: EndRequest) -> None:
        """Wait until all requested evaluations have ended, or until an end of the run is requested."""
        waits = [asyncio.ensure_future(self._settled.wait()), asyncio.ensure_future(end_request.wait())]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()

    def _claim(self, cluster: Actors) -> ActorProxy[Generator] | None:
        """Make a generator keep the weights of the waiting evaluation. Returns None if no generator has them."""
        assert self._waiting is not None
        self._claimed = cluster.weights.member_with(self._waiting[1], cluster.generators)
        if self._claimed is not None:
            cluster.weights.pin(self._claimed)
        return self._claimed

    async def _wait_for_member(self, cluster: Actors, step: int, version: int) -> None:
        """Wait for a generator that gets `version`, for example a replacement.

        Skip the step if the learner has published newer weights, because then no generator gets `version`."""
        if cluster.weights.version > version:
            self._waiting = None
            self._skip(step, "no generator has its weights any more")
        else:
            await asyncio.sleep(_POLL_SECONDS)

    def _skip(self, step: int, cause: str) -> None:
        self.skipped += 1
        log.warning("step %d is not evaluated: %s; a larger eval.every or fewer eval.samples help", step, cause)

    async def _ask(self, cluster: Actors, generator: ActorProxy[Generator], version: int) -> Score:
        """Let a generator that has `version` answer every problem. Returns the score.

        The generator answers as many problems at a time as its engine has rows that its forests leave free."""
        results: dict[str, dict[int, Result]] = defaultdict(dict)
        asked = iter([(s.name, t) for s in self._sets for t in tickets(s, self._config.run.seed)])
        try:
            async with asyncio.TaskGroup() as group:
                ForestsInFlight(
                    held_out(self._config),
                    lambda it: group.create_task(_answer(cluster, generator, version, it, asked, results)),
                )
        except* Lost as lost:
            raise next(single_errors(lost)) from lost
        found = {s.name: [results[s.name][place] for place in s.places] for s in self._sets}
        return score(found, self._config.eval.samples)


_POLL_SECONDS = 0.5  # seconds between two checks whether a generator has the weights of a step


async def _answer(
    cluster: Actors,
    generator: ActorProxy[Generator],
    version: int,
    in_flight: ForestsInFlight,
    asked: Iterator[tuple[str, Ticket]],
    results: dict[str, dict[int, Result]],
) -> None:
    """Let the generator answer one problem after another and grade the answers, as long as the engine has free rows."""
    for name, ticket in asked:
        try:
            forest, room = cast(tuple[ObjectRef[pa.RecordBatch], ObjectRef[int]], generator.answer.remote(ticket))
            free = await room
            _, report = await cluster.grading.grade(forest)
        except (*ACTOR_LOST, ObjectLostError) as fault:
            raise Lost(one_line(fault)) from fault
        except RayTaskError as fault:
            if isinstance(fault.cause, PathTooLong):
                raise BadInput(f"eval.data: {fault.cause}; remove this problem from the data") from fault
            if isinstance(fault.cause, EngineGone):
                cluster.generators.replace(generator, fault.cause)
            if isinstance(fault.cause, EngineGone | EngineLost):
                raise Lost(one_line(fault.cause)) from fault
            raise
        if set(report.versions) != {version}:
            raise Lost(f"its tokens have versions {report.versions} instead of {version} alone")
        results[name][ticket.draw] = Result(verdicts=report.verdicts, finishes=report.finishes, lengths=report.lengths)
        if not in_flight.keeps_loop(free):
            return
