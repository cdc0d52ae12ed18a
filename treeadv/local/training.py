"""The loop of `treeadv train --local`, which trains in one process without Ray.

On a CPU with the embedded engine two runs of one configuration end with bitwise equal weights, even if one run is
stopped and resumed. The exception is a verifier that exceeds its time limit, because this depends on the machine."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager

import torch

from treeadv.config import Config
from treeadv.data.model_folder import resolve
from treeadv.errors import BadForest, one_line, single_errors
from treeadv.evaluation.history import is_durable
from treeadv.jsonl import JsonObject
from treeadv.launch import Launch
from treeadv.learning.report import NonFinite
from treeadv.learning.trainer import Trainer
from treeadv.local.evaluation import LocalEvaluation
from treeadv.local.recorder import LocalRecorder
from treeadv.local.rollouts import ForestMaker
from treeadv.local.serving import Serving
from treeadv.local.steps import StepForests
from treeadv.report.progress import Progress, first_forests
from treeadv.visible import visible_logger

log = visible_logger(__name__)


def train(run: Launch, progress: Progress) -> JsonObject:
    """Train until the last step or an interrupt. Returns the summary, which summary.json also holds.

    The field `stopped_by` of the summary names the signal that ended the run. The first Ctrl-C ends the run after
    the current step. The second Ctrl-C ends it at once."""
    try:
        with _signals() as received:
            return asyncio.run(_train(run, progress, received))
    except Exception as error:
        if bad := run.explain(single_errors(error), local=True):
            raise bad from error
        raise


async def _train(run: Launch, progress: Progress, signals: list[signal.Signals]) -> JsonObject:
    config, folder = run.config, run.folder
    model = resolve(config.model.path, config.model.cache)
    first = folder.last_checkpoint()
    async with AsyncExitStack() as stack:
        progress.say(f"loading {model.name} into the engine ({config.generator.engine})")
        maker = await ForestMaker.start(config, model)
        stack.push_async_callback(maker.close)
        steps = StepForests(config, folder, maker, first)
        stack.callback(steps.close)
        evaluation = await LocalEvaluation.start(config, folder, maker, model)
        stack.push_async_callback(evaluation.close)
        torch.set_num_threads(config.learner.threads or os.cpu_count() or 1)
        progress.say(f"loading {model.name} into the learner ({config.learner.device})")
        trainer = Trainer(config, str(model), keep_dir=folder.path)
        serving = Serving(config, trainer, maker.engine)
        if first:
            with folder.open_checkpoint(first) as checkpoint:
                trainer.restore(checkpoint)
                serving.restore(checkpoint)
                steps.restore(checkpoint)
        run.accept(first)
        evaluation.book.keep_best()
        recorder = LocalRecorder(folder, progress, maker.engine)
        progress.say(first_forests(config, first))
        await _learn(config, trainer, serving, steps, evaluation, recorder, signals)
        ended = {"stopped_by": signals[0].name if signals else None, "early_end": evaluation.book.early_end}
        return recorder.summary(steps.states()) | ended


async def _learn(
    config: Config,
    trainer: Trainer,
    serving: Serving,
    steps: StepForests,
    evaluation: LocalEvaluation,
    recorder: LocalRecorder,
    signals: list[signal.Signals],
) -> None:
    """Repeat: grow and grade forests, take a step on them, update the engine's weights.

    After some steps, evaluate the weights and write a checkpoint. A signal ends the loop as soon as a checkpoint holds
    the last step."""
    saved = trainer.steps
    while True:
        with recorder.phase("publish"):
            await serving.hand_over()
        if not signals and evaluation.book.lacks(trainer.steps):
            with recorder.evaluating():
                recorder.show_evaluation(await evaluation.run(trainer, serving, signals))
        if trainer.steps == config.run.steps or evaluation.book.early_end or (signals and trainer.steps == saved):
            return
        with recorder.phase("wait"):
            forests = await steps.forests(trainer.version)
        try:
            report = trainer.step(forests, trainer.version)
        except (NonFinite, BadForest) as fault:  # the run ends, and a resumed run must not take the same forests again
            steps.discard("not_finite" if isinstance(fault, NonFinite) else "invalid", one_line(fault))
            raise
        if report.void:  # the batch does not count as a step, so another batch replaces this one
            steps.discard("not_finite", f"batch of version {report.version}")
            continue
        serving.keep_weights()
        steps.acknowledge(trainer.steps, report.nonfinite_forests)
        recorder.record(trainer.steps, report, steps)
        if signals or is_durable(config, trainer.steps):
            with recorder.phase("checkpoint"):
                steps.checkpoint(trainer.steps, trainer, serving)
            saved = trainer.steps


@contextmanager
def _signals() -> Iterator[list[signal.Signals]]:
    """Collect the signals that request the end of the run. The second signal raises KeyboardInterrupt."""
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
