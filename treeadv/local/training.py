"""Training in one process, without Ray: the loop behind `treeadv train --local`.

On a CPU with the embedded engine, two runs of one configuration end in the same weights bitwise, also when one of them
is stopped and resumed. A verifier that runs out of time is the exception: that depends on the machine.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from treeadv.config import Config
from treeadv.data.model_folder import resolve
from treeadv.errors import single_errors
from treeadv.launch import Launch
from treeadv.learning.trainer import Trainer
from treeadv.local.recorder import LocalRecorder
from treeadv.local.rollouts import ForestMaker
from treeadv.local.serving import Serving
from treeadv.local.steps import StepForests
from treeadv.report.progress import Progress
from treeadv.storage.run_folder import RunFolder
from treeadv.visible import visible_logger

log = visible_logger(__name__)


def train(run: Launch, progress: Progress) -> dict[str, Any]:
    """Train until the last step or an interrupt. Returns the summary that it wrote; its `stopped_by` names the signal
    that ended the run. The first Ctrl-C ends the run after the step in hand, the second at once."""
    try:
        with _signals() as received:
            return asyncio.run(_train(run, progress, received))
    except Exception as error:
        if bad := run.explain(single_errors(error)):
            raise bad from error
        raise


async def _train(run: Launch, progress: Progress, signals: list[signal.Signals]) -> dict[str, Any]:
    config, folder = run.config, run.folder
    model = resolve(config.model.path, config.model.cache)
    first = folder.last_checkpoint()
    maker = await ForestMaker.start(config, model)
    steps = StepForests(config, folder, maker, first)
    try:
        torch.set_num_threads(config.learner.threads or os.cpu_count() or 1)
        trainer = Trainer(config, str(model), keep_dir=folder.path)
        serving = Serving(config, trainer, maker.engine)
        if first:
            with folder.open_checkpoint(first) as checkpoint:
                trainer.restore(checkpoint)
                serving.restore(checkpoint)
                steps.restore(checkpoint)
        run.accept(first)
        recorder = LocalRecorder(folder, progress, maker.engine)
        await _learn(config, folder, trainer, serving, steps, recorder, signals)
        return recorder.summary(steps.states()) | {"stopped_by": signals[0].name if signals else None}
    finally:
        steps.close()
        await maker.close()


async def _learn(
    config: Config,
    folder: RunFolder,
    trainer: Trainer,
    serving: Serving,
    steps: StepForests,
    recorder: LocalRecorder,
    signals: list[signal.Signals],
) -> None:
    """Grow and grade forests, redistribute their rewards and step, hand the weights over; write a checkpoint now and
    then."""
    last = config.run.steps
    while trainer.steps < last and not signals:
        with recorder.phase("publish"):
            await serving.hand_over()
        with recorder.phase("wait"):
            forests = await steps.forests(trainer.version)
        report = trainer.step(forests, trainer.version)
        if report.void:  # another batch takes its place
            steps.discard(f"batch of version {report.version}")
            continue
        serving.keep_weights()
        steps.acknowledge(trainer.steps, report.nonfinite_forests)
        recorder.record(trainer.steps, report, steps)
        if signals or trainer.steps == last or trainer.steps % config.run.checkpoint_every == 0:
            with recorder.phase("checkpoint"):
                steps.checkpoint(trainer.steps, trainer, serving)


@contextmanager
def _signals() -> Iterator[list[signal.Signals]]:
    """Collect the signals that ask for the end; the second raises KeyboardInterrupt. Other threads get none."""
    received: list[signal.Signals] = []

    def handle(number: int, _frame: object) -> None:
        received.append(signal.Signals(number))
        if len(received) > 1:
            raise KeyboardInterrupt
        log.warning("stopping after this step, with a checkpoint (interrupt again to stop at once)")

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
