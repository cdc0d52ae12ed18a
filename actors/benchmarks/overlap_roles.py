"""The model work of a learner and of a generator, each in its own process with one thread, for `treeadv bench overlap`.

A process writes "ready", reads a number of seconds from each line of its input, works that long, and writes the units
of work that it did in a second. A unit is the gradient of one forest or one drawn token: with large units one process
would work on after the other has ended, and the two would seem to share less than they do."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager

import numpy as np
import torch

from actors.benchmarks.synthetic import synthetic_forest
from treeadv.config import parse
from treeadv.engines.base import Params
from treeadv.engines.embedded import EmbeddedEngine
from treeadv.errors import BadInput
from treeadv.learning.report import Phases
from treeadv.learning.trainer import Trainer

BRANCHES, LENGTH, PROMPT = 48, 20, 40  # as in the recipe `laptop`: 6 forests of 8 leaves
WARM = 5.0  # seconds of the first work, which is not measured


class Role:
    """A process that does the model work of one role."""

    def __init__(self, name: str, model: str, dtype: str) -> None:
        """Start the process, and wait until its model is loaded and warm."""
        self.name = name
        command = [sys.executable, "-m", "actors.benchmarks.overlap_roles", name, model, dtype]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._read()

    def begin(self, seconds: float) -> None:
        """Start to work for `seconds`."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()

    def rate(self) -> float:
        """Wait for the end of the work. Returns the units of work in a second."""
        return float(self._read())

    def close(self) -> None:
        self._process.communicate()

    def _read(self) -> str:
        assert self._process.stdout is not None
        while line := self._process.stdout.readline():
            if line.startswith("overlap "):
                return line.split()[1]
        raise BadInput(f"bench overlap: the process of the {self.name} ended; its message is above")


@contextmanager
def _learner(model: str, dtype: str) -> Iterator[Callable[[float], int]]:
    learner = {"dtype": dtype, "threads": 1}
    trainer = Trainer(parse({"task": {"families": [{"name": "chain_sum"}]}, "learner": learner}, "benchmark"), model)
    size = trainer.policy.vocabulary
    forests = [synthetic_forest(8, LENGTH, 0.2, PROMPT, size, seed) for seed in range(BRANCHES // 8)]

    trainer.gradients(forests[:1], Phases("cpu"))
    trainer.optimizer.step()  # creates the moments, which takes longer than a later step
    turns = itertools.count(1)

    def work(_end: float) -> int:
        i = next(turns)
        trainer.gradients([forests[i % len(forests)]], Phases("cpu"))
        if i % len(forests) == 0:
            trainer.optimizer.step()
        return 1

    yield work


@contextmanager
def _generator(model: str, dtype: str) -> Iterator[Callable[[float], int]]:
    engine = EmbeddedEngine(model, rows=BRANCHES, dtype=dtype, threads=1)
    prompts = np.random.default_rng(0).integers(3, engine.model.config.vocab_size, (BRANCHES // 8, PROMPT), np.int32)

    async def draw(i: int, end: float) -> int:
        params, drawn = Params(max_tokens=LENGTH, temperature=0.7, stop=frozenset(), seed=i), 0
        async with aclosing(engine.generate(prompts[i // 8], params, str(i // 8), str(i))) as draws:
            async for _ in draws:
                drawn += 1
                if time.perf_counter() > end:
                    break
        return drawn

    async def forests(end: float) -> int:
        drawn = sum(await asyncio.gather(*(draw(i, end) for i in range(BRANCHES))))
        for i in range(len(prompts)):
            await engine.release(str(i))
        return drawn

    with asyncio.Runner() as runner:
        yield lambda end: runner.run(forests(end))
        runner.run(engine.close())


ROLES = {"learner": _learner, "generator": _generator}


def main(name: str, model: str, dtype: str) -> None:
    torch.set_num_threads(1)
    with ROLES[name](model, dtype) as work:
        work(time.perf_counter() + WARM)  # compiles and warms up
        print("overlap ready", flush=True)
        for line in sys.stdin:
            done, began = 0, time.perf_counter()
            end = began + float(line)
            while time.perf_counter() < end:
                done += work(end)
            print(f"overlap {done / (time.perf_counter() - began)}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
