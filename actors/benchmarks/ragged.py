"""`treeadv bench ragged`: the embedded engine against transformers' `generate` on answers of different lengths.

Both draw the same answers by number and length with the same model, threads and batch size. The lengths are drawn from
a log-normal distribution, whose mean is near --mean. `generate` ends a batch with its longest answer; the engine gives
a free row to the next answer. It prints one JSON object per line.

    generate   tokens per second of `generate`, in batches of --rows answers. `cpu_s` and `tokens_per_cpu_second` are
               CPU time, on which other load has less effect
    engine     tokens per second of the engine with --rows rows. `model` is the share of its time in the model;
               the rest is the drawing of tokens and Python
    speedup    `engine_over_generate`: the ratio of the mean times of --rounds rounds, in which the two take turns.
               `engine_over_generate_cpu`: the same of CPU times
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Callable
from statistics import fmean

import numpy as np
import torch
from transformers import AutoModelForCausalLM, StoppingCriteria

from actors.benchmarks.lines import print_figures
from actors.benchmarks.model_time import ModelTime
from actors.benchmarks.options import model_parser
from treeadv.command_line import above_zero, positive
from treeadv.data import model_folder as models
from treeadv.engines.base import Params
from treeadv.engines.embedded import EmbeddedEngine

TEMPERATURE = 0.7


def main(argv: list[str]) -> None:
    p = model_parser("treeadv bench ragged", __doc__)
    p.add_argument("--answers", type=positive, default=64)
    p.add_argument("--rows", type=positive, default=16)
    p.add_argument("--prompt", type=positive, default=32, help="tokens of a prompt")
    p.add_argument("--mean", type=above_zero, default=24.0, help="mean tokens of an answer")
    p.add_argument("--sigma", type=float, default=0.8, help="standard deviation of the logarithm of the lengths")
    p.add_argument("--rounds", type=positive, default=2)
    p.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    p.add_argument("--threads", type=positive, default=1)
    _Ragged(p.parse_args(argv)).run()


class _Lengths(StoppingCriteria):
    """Ends each row of a batch at its own length."""

    def __init__(self, prompt: int, lengths: np.ndarray) -> None:
        self._ends = torch.as_tensor(lengths) + prompt

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: object) -> torch.Tensor:
        return self._ends <= input_ids.shape[1]


class _Ragged:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self._number = args, 0
        torch.set_num_threads(args.threads)
        folder = models.resolve(args.model, args.cache)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, args.dtype)).eval()
        self.engine = EmbeddedEngine(folder, args.rows, args.dtype, args.threads)
        rng = np.random.default_rng(0)
        scale = np.log(args.mean) - args.sigma**2 / 2
        self.lengths = np.maximum(1, rng.lognormal(scale, args.sigma, args.answers).round()).astype(int)
        self.prompts = rng.integers(3, self.model.config.vocab_size, (args.answers, args.prompt))

    def run(self) -> None:
        found: dict[str, list[dict[str, float]]] = {"generate": [], "engine": []}
        tokens = int(self.lengths.sum())
        with asyncio.Runner() as runner:
            for turn in range(self.args.rounds + 1):  # the first round is a warm-up and is not measured
                for name, figures in (("generate", self._timed(self._generate)), ("engine", self._in_engine(runner))):
                    if turn:
                        figures |= {"tokens_per_second": tokens / figures["s"]}
                        figures |= {"tokens_per_cpu_second": tokens / figures["cpu_s"]}
                        found[name].append(figures)
                        self._print(name, tokens=tokens, **figures)
            runner.run(self.engine.close())
        means = {n: {k: fmean(f[k] for f in rounds) for k in rounds[0]} for n, rounds in found.items()}
        self._print(
            "speedup",
            rows=self.args.rows,
            answers=self.args.answers,
            engine_over_generate=means["generate"]["s"] / means["engine"]["s"],
            engine_over_generate_cpu=means["generate"]["cpu_s"] / means["engine"]["cpu_s"],
        )

    def _timed(self, work: Callable[[], object]) -> dict[str, float]:
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        return {"s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}

    def _in_engine(self, runner: asyncio.Runner) -> dict[str, float]:
        model = ModelTime(self.engine)
        figures = self._timed(lambda: runner.run(self._engine()))
        model.stop()
        return figures | {"model": model.seconds / figures["s"]}

    @torch.inference_mode()
    def _generate(self) -> None:
        for i in range(0, self.args.answers, self.args.rows):
            some = slice(i, i + self.args.rows)
            ids, lengths = torch.as_tensor(self.prompts[some]), self.lengths[some]
            self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                temperature=TEMPERATURE,
                top_k=0,
                top_p=1.0,
                max_new_tokens=int(lengths.max()),
                eos_token_id=None,
                pad_token_id=0,
                stopping_criteria=[_Lengths(ids.shape[1], lengths)],
            )

    async def _engine(self) -> None:
        async def one(i: int, namespace: str) -> int:
            params = Params(max_tokens=int(self.lengths[i]), temperature=TEMPERATURE, stop=frozenset(), seed=i)
            prompt = self.prompts[i].astype(np.int32)
            drawn = len([d async for d in self.engine.generate(prompt, params, namespace, "0")])
            await self.engine.release(namespace)
            return drawn

        first, self._number = self._number, self._number + self.args.answers
        await asyncio.gather(*(one(i, str(first + i)) for i in range(self.args.answers)))

    def _print(self, name: str, **figures: object) -> None:
        print_figures(bench="ragged", dtype=self.args.dtype, way=name, **figures)
