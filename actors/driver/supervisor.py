"""One session of training: a cluster, a cast, and going on from the last checkpoint when a role that holds the run's state dies."""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import shutil
import signal

import ray
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError

from actors.driver import pipeline
from actors.driver.cluster import Cast
from actors.driver.recorder import Recorder
from actors.driver.worker_group import BACKOFF, RESTARTS, RoleFailed
from treeadv.config import Config
from treeadv.data import model_folder as models
from treeadv.errors import BadForest, BadInput, one_line
from treeadv.learning.report import NonFinite
from treeadv.report.progress import Progress
from treeadv.storage.run_folder import RunFolder

FULL = 1 << 20  # bytes free below which a disk counts as full
PATIENCE = 30.0  # seconds without everyone up before it is said who is missing
log = logging.getLogger(__name__)


def train(config: Config, folder: RunFolder, resumed: bool, progress: Progress) -> dict:
    """Train until the last step or an interrupt; returns the summary that it wrote, with the name of the signal that ended it as
    `stopped_by`. Ctrl-C once ends after the step in hand."""
    try:
        return asyncio.run(_train(connect(config), folder, resumed, progress))
    except Exception as fault:
        line = _line(fault)
        if not line and shutil.disk_usage(folder.path).free < FULL:  # torch's writer hides the cause behind one of its own
            line = f"no space left on the disk of {folder.path}: make room, or choose another run.root"
        if line:
            raise BadInput(f"{line} (what was done is kept: treeadv train --resume {shlex.quote(folder.home)})") from fault
        raise
    finally:
        ray.shutdown()


def _line(fault: BaseException) -> str | None:
    """The one line that tells a user of a fault that is theirs to mend, or of a role that could not be kept alive."""
    if isinstance(fault, BaseExceptionGroup):
        return next(filter(None, map(_line, fault.exceptions)), None)
    cause = fault.cause if isinstance(fault, RayTaskError) else fault
    return one_line(cause) if isinstance(cause, BadInput | RoleFailed | NonFinite | BadForest) else None


def connect(config: Config) -> Config:
    """Join the cluster at RAY_ADDRESS, or start one on this machine. Returns the configuration to go by: on one machine its counts
    alone decide how many actors there are, `treeadv scale` included, and only GPUs are handed out."""
    # Of the two returns of `grow` and `grade` one is awaited and tells of any fault; Ray would print the other's as unhandled.
    os.environ["RAY_IGNORE_UNHANDLED_ERRORS"] = "1"
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False)
        if config.metrics.host.startswith("127."):
            log.warning("metrics.host=%s: only this machine can read the metrics of a role; set 0.0.0.0 on a cluster", config.metrics.host)
        return config
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    roles = {name: getattr(config, name) for name in ("generator", "reward", "learner")}
    wanted = sum(getattr(role, "gpus", 0) * role.count for role in roles.values())
    if wanted > (there := ray.cluster_resources().get("GPU", 0)):
        raise BadInput(f"generator.gpus and learner.gpus ask for {wanted:g} GPUs: this machine has {there:g}")
    return config.model_copy(update={name: role.model_copy(update={"cpus": 0.0, "slot": ""}) for name, role in roles.items()})


async def _train(config: Config, folder: RunFolder, resumed: bool, progress: Progress) -> dict:
    stop, whole = asyncio.Event(), asyncio.Event()
    signs: list[signal.Signals] = []
    for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if sign != signal.SIGHUP or signal.getsignal(sign) != signal.SIG_IGN:  # under nohup the end of the terminal is not ours
            asyncio.get_running_loop().add_signal_handler(sign, _interrupt, sign, signs, stop)
    config = config.model_copy(update={"model": models.anywhere(config.model)})
    await asyncio.to_thread(models.resolve, config.model.path, config.model.cache)
    folder.forget_end()
    recorder = Recorder(folder, progress, whole)
    failures = 0
    while True:
        step = folder.last_checkpoint()
        folder.rewind(step)
        cast = Cast(config, folder, resumed)
        fault = await _attempt(cast, recorder, stop, whole)
        resumed = True
        if fault is None and (signs or not cast.renewed):
            return recorder.summary() | {"stopped_by": signs[0].name if signs else None}
        if fault is None:  # other learners, or in another place: they share the checkpoint out anew
            config = config.model_copy(update={"learner": config.learner.model_copy(update={"count": cast.learners_wanted})})
            stop.clear()
            continue
        failures = failures + 1 if folder.last_checkpoint() == step else 1
        if failures > RESTARTS:
            raise RoleFailed(f"the queue or a learner died {failures} times since step {step}; the last cause: {fault}") from fault
        log.warning("lost a role that holds the run's state (%s); going on from the last checkpoint", fault)
        await asyncio.sleep(BACKOFF * 2 ** (failures - 1))


async def _attempt(cast: Cast, recorder: Recorder, stop: asyncio.Event, whole: asyncio.Event) -> BaseException | None:
    """Run until the end, or return the death of the queue or a learner, or the loss of what they held, which the caller goes on from.
    Any other fault is raised."""
    death: BaseException | None = None
    recorder.serve(cast)
    try:
        if await _assemble(cast, stop):
            whole.set()
            await pipeline.run(cast, recorder, stop)
            await recorder.settle(cast)
    except* (RayActorError, ObjectLostError) as group:
        death = group.exceptions[0]
    finally:
        whole.clear()
        await cast.end()
    return death


async def _assemble(cast: Cast, stop: asyncio.Event) -> bool:
    """Bring the cast up, and tell now and then whom it waits for. False when `stop` came first."""
    coming, stopping = asyncio.create_task(cast.begin()), asyncio.create_task(stop.wait())
    try:
        while not (await asyncio.wait([coming, stopping], timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED))[0]:
            log.warning("still waiting for %s", cast.missing())
        return coming.done() and coming.result() is None
    finally:
        coming.cancel()
        stopping.cancel()
        await asyncio.gather(coming, stopping, return_exceptions=True)  # cancelled here; a fault of its own was raised above


def _interrupt(sign: signal.Signals, signs: list[signal.Signals], stop: asyncio.Event) -> None:
    """The first interrupt ends the run in order; the second ends it at once, to be gone on with by --resume."""
    signs.append(sign)
    if len(signs) > 1:
        raise KeyboardInterrupt
    stop.set()
    log.warning("stopping after this step, with a checkpoint (interrupt again to stop at once)")
