"""The model work of a learner and of a generator, each in its own process with one thread, for `treeadv bench overlap`.

A process writes "ready", reads a number of seconds from each line of its input, works that long, and writes the units
of work that it did in a second: a unit is one learner step or one drawn token."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

from actors.benchmarks.synthetic import synthetic_forest
from treeadv.config import parse
from treeadv.engines.base import Params
from treeadv.engines.embedded import EmbeddedEngine
from treeadv.errors import BadInput
from treeadv.learning.report import Phases
from treeadv.learning.trainer import Trainer

BRANCHES, LENGTH, PROMPT = 48, 40, 40  # as in the recipe `laptop`: 6 forests of 8 leaves


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
def _learner(model: str, dtype: str) -> Iterator[Callable[[], int]]:
    learner = {"dtype": dtype, "threads": 1}
    trainer = Trainer(parse({"task": {"families": [{"name": "chain_sum"}]}, "learner": learner}, "benchmark"), model)
    size = trainer.policy.vocabulary
    forests = [synthetic_forest(8, LENGTH, 0.2, PROMPT, size, seed) for seed in range(BRANCHES // 8)]

    def work() -> int:
        trainer.gradients(forests, Phases("cpu"))
        trainer.optimizer.step()
        return 1

    yield work


@contextmanager
def _generator(model: str, dtype: str) -> Iterator[Callable[[], int]]:
    engine = EmbeddedEngine(model, rows=BRANCHES, dtype=dtype, threads=1)
    prompts = np.random.default_rng(0).integers(3, engine.model.config.vocab_size, (BRANCHES // 8, PROMPT), np.int32)

    async def draw(i: int) -> int:
        params = Params(max_tokens=LENGTH, temperature=0.7, stop=frozenset(), seed=i)
        return len([d async for d in engine.generate(prompts[i // 8], params, str(i // 8), str(i))])

    async def forests() -> int:
        drawn = sum(await asyncio.gather(*map(draw, range(BRANCHES))))
        for i in range(len(prompts)):
            await engine.release(str(i))
        return drawn

    with asyncio.Runner() as runner:
        yield lambda: runner.run(forests())
        runner.run(engine.close())


ROLES = {"learner": _learner, "generator": _generator}


def main(name: str, model: str, dtype: str) -> None:
    torch.set_num_threads(1)
    with ROLES[name](model, dtype) as work:
        work()  # compiles and warms up
        print("overlap ready", flush=True)
        for line in sys.stdin:
            done, began = 0, time.perf_counter()
            while time.perf_counter() - began < float(line):
                done += work()
            print(f"overlap {done / (time.perf_counter() - began)}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
