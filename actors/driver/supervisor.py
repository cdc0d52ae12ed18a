"""The supervisor of a training session. It connects to Ray, starts the actors, and resumes from the last checkpoint
if the queue or a learner dies."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Coroutine
from pathlib import Path

import ray
from ray.exceptions import RayTaskError

from actors.driver import pipeline
from actors.driver.attempt_outcome import AttemptOutcome, EndRequest
from actors.driver.cluster import Cluster
from actors.driver.liveness import STATE_LOST
from actors.driver.nodes import fail_when_own_node_dies
from actors.driver.recorder import Recorder
from actors.driver.start_check import join_cluster
from actors.driver.worker_group import BACKOFF, RESTARTS, RoleFailed
from treeadv.config import Config
from treeadv.data import model_folder as models
from treeadv.errors import RunFailed, one_line, single_errors
from treeadv.jsonl import JsonObject
from treeadv.launch import Launch
from treeadv.report.progress import Progress, first_forests
from treeadv.visible import visible_logger

START_PATIENCE = 30.0  # seconds before a warning names the actors that are not up
log = visible_logger(__name__)


class StateLost(Exception):
    """The queue or a learner died, or an object that they need is lost. The run must resume from its last
    checkpoint."""


def train(run: Launch, progress: Progress) -> JsonObject:
    """Train until the last step or an interrupt. Returns the summary, which summary.json also holds.

    The field `stopped_by` names the signal that ended the run. The first Ctrl-C ends the run after the current step."""
    try:
        return asyncio.run(_supervise(run, connect(run.config), progress))
    except Exception as error:
        causes = (e.cause if isinstance(e, RayTaskError) else e for e in single_errors(error))
        if bad := run.explain(causes, RoleFailed):
            raise bad from error
        raise
    finally:
        ray.shutdown()


def connect(config: Config) -> Config:
    """Connect to the cluster at RAY_ADDRESS, or start a cluster on this machine. Returns the configuration to use.

    On one machine Ray schedules by GPUs only. The number of actors then depends on the configured counts or on the
    counts of `treeadv scale`."""
    # `finished`, `answer` and `grade` have two returns. The driver awaits only one of them, which raises the error.
    # Without this setting Ray would print the error of the other return as unhandled.
    os.environ["RAY_IGNORE_UNHANDLED_ERRORS"] = "1"
    if os.environ.get("RAY_ADDRESS"):
        join_cluster()
        if config.metrics.host.startswith("127."):
            log.warning(
                "metrics.host=%s: only this machine can read the metrics of a role; set 0.0.0.0 on a cluster",
                config.metrics.host,
            )
        return config
    try:
        ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as e:  # Ray raises its own errors, and plain Exception
        raise RunFailed(f"Ray does not start ({one_line(e)}); is this machine too busy?") from e
    roles = (("generator", config.generator), ("reward", config.reward), ("learner", config.learner))
    return config.model_copy(update={name: role.model_copy(update={"cpus": 0.0, "slot": ""}) for name, role in roles})


async def _supervise(run: Launch, config: Config, progress: Progress) -> JsonObject:
    folder, end_request = run.folder, EndRequest()
    signals = _handle_signals(end_request)
    config = config.model_copy(update={"model": models.anywhere(config.model)})
    await asyncio.to_thread(models.resolve, config.model.path, config.model.cache)
    recorder = Recorder(folder, progress)
    failures = 0
    while True:
        cluster = Cluster(config, folder)
        step = cluster.first_step
        if recorder.resumed:
            folder.rewind(step)
        end_request.clear_reshape()
        try:
            attempt_outcome = await _while_own_node_lives(_attempt(run, cluster, recorder, end_request))
        except StateLost as loss:
            failures = failures + 1 if folder.last_checkpoint() == step else 1
            if failures > RESTARTS:
                raise RoleFailed(
                    f"the queue or a learner died {failures} times since step {step}; the last cause: {loss}"
                ) from loss
            recorder.count_loss()
            log.warning(
                "an actor that holds the state of the run is lost (%s); the run resumes from the last checkpoint", loss
            )
            await asyncio.sleep(BACKOFF * 2 ** (failures - 1))
        else:
            if attempt_outcome is not AttemptOutcome.RESHAPE:
                early = cluster.evaluations.book.early_end
                # After SIGTERM or SIGHUP another driver has to resume the run, so TreeadvDriverDown may fire.
                if attempt_outcome is not AttemptOutcome.INTERRUPTED or signals[0] is signal.SIGINT:
                    await recorder.end()
                return recorder.summary() | {"stopped_by": signals[0].name if signals else None, "early_end": early}
            learner = config.learner.model_copy(update={"count": cluster.learners.target_count})
            config = config.model_copy(update={"learner": learner})


async def _while_own_node_lives(attempt: Coroutine[None, None, AttemptOutcome]) -> AttemptOutcome:
    """Run an attempt, and end it if the node of the driver dies. The calls of the attempt would otherwise wait
    forever."""
    running, watching = asyncio.create_task(attempt), asyncio.create_task(fail_when_own_node_dies())
    try:
        await asyncio.wait([running, watching], return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            watching.result()
        return await running
    finally:
        running.cancel()
        watching.cancel()
        await asyncio.gather(running, watching, return_exceptions=True)  # only waits; faults are raised above


async def _attempt(run: Launch, cluster: Cluster, recorder: Recorder, end_request: EndRequest) -> AttemptOutcome:
    """Run one attempt until its end. Raises `StateLost` if the caller has to resume from the last checkpoint."""
    attempt_outcome, loss = AttemptOutcome.INTERRUPTED, None
    recorder.follow(cluster)
    recorder.progress.say(f"starting actors, which load {Path(cluster.config.model.path).name}: {cluster.missing()}")
    try:
        if await _start(cluster, end_request):
            recorder.progress.say(first_forests(cluster.config, cluster.first_step))
            if not recorder.resumed:
                await asyncio.to_thread(run.accept, cluster.first_step)
            recorder.resume()
            recorder.healthy = True
            if cluster.evaluations.book.early_end:  # the run has ended early before and was resumed without a change
                end_request.end_early()
            attempt_outcome = await pipeline.run(cluster, recorder, end_request)
            await recorder.note_final_states(cluster)
        else:
            attempt_outcome = end_request.attempt_outcome or attempt_outcome
    except* STATE_LOST as group:
        loss = next(single_errors(group))
    finally:
        recorder.healthy = False
        await cluster.end()
    if loss:
        raise StateLost(str(loss)) from loss
    return attempt_outcome


async def _start(cluster: Cluster, end_request: EndRequest) -> bool:
    """Start the actors. Every START_PATIENCE seconds a warning names the missing actors.

    Returns False if an end of the run is requested first."""
    starting, ending = asyncio.create_task(cluster.start()), asyncio.create_task(end_request.wait())
    try:
        while not (await asyncio.wait([starting, ending], timeout=START_PATIENCE, return_when=asyncio.FIRST_COMPLETED))[
            0
        ]:
            log.warning("still waiting for %s", cluster.missing())
        return starting.done() and starting.result() is None
    finally:
        starting.cancel()
        ending.cancel()
        # This line only waits for the cancelled tasks; the faults are raised above.
        await asyncio.gather(starting, ending, return_exceptions=True)


def _handle_signals(end_request: EndRequest) -> list[signal.Signals]:
    """Handle signals: the first signal requests an orderly end, and the second signal raises KeyboardInterrupt.

    Returns the list to which received signals are appended."""
    received: list[signal.Signals] = []

    def handle(number: signal.Signals) -> None:
        received.append(number)
        if len(received) > 1:
            raise KeyboardInterrupt
        end_request.interrupt()
        log.warning("stopping after this step, with a checkpoint (interrupt again to stop at once)")

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup makes a process ignore SIGHUP
            asyncio.get_running_loop().add_signal_handler(number, handle, number)
    return received
