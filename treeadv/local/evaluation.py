"""Evaluation in this process: an engine of this process draws answers, and the process grades and counts them."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

from treeadv import __version__
from treeadv.config import Config
from treeadv.data.prompts import Prompter
from treeadv.engines.base import Engine
from treeadv.evaluation.book import EvaluationBook
from treeadv.evaluation.folder import settings_of_sets
from treeadv.evaluation.scores import Score, result_of, score
from treeadv.evaluation.sets import EvalSet, held_out, sets_of, tickets
from treeadv.jsonl import JsonObject
from treeadv.learning.trainer import Trainer
from treeadv.local.rollouts import ForestMaker
from treeadv.local.serving import Serving
from treeadv.storage.run_folder import RunFolder

_POLL_SECONDS = 0.2  # between two checks for signals


async def evaluate(maker: ForestMaker, sets: Sequence[EvalSet], samples: int, seed: int) -> Score:
    """Draw and grade `samples` answers to every problem. As many problems as fill the engine are answered at a time."""
    made = await maker.make([t for s in sets for t in tickets(s, seed)])
    results = map(result_of, made)
    return score({s.name: [next(results) for _ in s.problems] for s in sets}, samples)


def settings_of(config: Config, model: Path, sets: Sequence[EvalSet], samples: int) -> JsonObject:
    """Return the settings on which the answers of a model depend.

    `model` is the folder of the model. Only its name and a digest of the weights count, so the folder may move."""
    digest = blake2b(digest_size=16)
    for file in sorted(model.glob("*.safetensors")):
        with file.open("rb") as f:
            while chunk := f.read(1 << 24):
                digest.update(chunk)
    task = config.task.model_dump(mode="json", exclude={"source", "sources", "families", "content"})
    generator = config.generator.model_dump(mode="json", include={"engine", "engine_options", "dtype"})
    return {
        "treeadv": __version__, "model": {"name": model.name, "weights": digest.hexdigest()},
        "sets": settings_of_sets(sets), "samples": samples, "seed": config.run.seed, "task": task,
        "chat_template": Prompter(model).tokenizer.chat_template, "sampling": config.sampling.model_dump(mode="json"),
        "generator": generator,
    }  # fmt: skip


class LocalEvaluation:
    """The evaluation of the newest weights of a run in one process, between two steps.

    With `local.staleness` the engine of the run holds older weights, so a second engine draws the answers."""

    def __init__(self, config: Config, book: EvaluationBook, maker: ForestMaker, own_engine: Engine | None) -> None:
        self._config, self._book, self._maker, self._own_engine = config, book, maker, own_engine
        self._sets = sets_of(config) if config.eval.every else []
        maker.check_lengths([p for s in self._sets for p in s.problems])

    @classmethod
    async def start(cls, config: Config, folder: RunFolder, maker: ForestMaker, model_dir: Path) -> LocalEvaluation:
        """Share the engine of `maker`, or start a second engine if the engine of `maker` holds older weights."""
        book = EvaluationBook(config, folder)
        if not config.eval.every:
            return cls(config, book, maker, None)
        if config.local.staleness:
            own = await ForestMaker.start(held_out(config), model_dir)
            return cls(config, book, own, own.engine)
        return cls(config, book, maker.drawing(held_out(config), model_dir), None)

    @property
    def book(self) -> EvaluationBook:
        return self._book

    async def run(self, trainer: Trainer, serving: Serving, signals: Sequence[signal.Signals]) -> JsonObject | None:
        """Evaluate the weights of the trainer and return the record.

        Returns None if a signal arrives first. A resumed run then evaluates the weights."""
        began = time.monotonic()
        if self._own_engine:
            await serving.hand_newest(self._own_engine)
        drawing = asyncio.create_task(
            evaluate(self._maker, self._sets, self._config.eval.samples, self._config.run.seed)
        )
        while not (await asyncio.wait({drawing}, timeout=_POLL_SECONDS))[0]:
            if signals:
                drawing.cancel()
                await asyncio.gather(drawing, return_exceptions=True)
                return None
        return self._book.add(trainer.steps, trainer.version, time.monotonic() - began, drawing.result())

    async def close(self) -> None:
        if self._own_engine:
            await self._maker.close()
