"""`treeadv bench rollout`: compares forests with flat rollouts on a real engine. It prints one JSON object per line.

No token ends a leaf, so every leaf has --max-tokens tokens and all measurements draw leaves of equal length.
`client_ms_per_token` is CPU time of this process. With sglang this process runs only the sampler and the client of the
engine.

    forest     forests with --leaves leaves and entropy forks: tokens drawn, seconds per leaf, cached share of prefixes.
               `sharing` is the share of flattened tokens that were not drawn. `formula` is f (1 - M/G), where f is the
               mean position of the last fork of a leaf
    flat       the same number of leaves without forks
    saving     what a forest saves compared with flat: tokens, and seconds per leaf
    raw        the same number of branches drawn without the sampler. `sampler` is the share of tokens per second that
               the sampler costs
    chunk      sglang: `forest` for each value of --chunks
    direct     sglang: the branches of `raw` as one plain request each, without chunks, log-probs and entropies
    small      sglang: `forest` with a cache of --small-pool tokens; the server counts evicted tokens
    saturated  only with --saturated: forests and flat rollouts in turn. The forests in flight follow the free rows, as
               in training; --forests of them warm up, and as many are measured. `seconds_per_leaf` is the ratio of
               `tokens_per_leaf` of the ended forests to `tokens_per_second` of the engine
    ratio      only with --saturated: forests over flat. `time_over_tokens` is the ratio of seconds per leaf divided by
               the ratio of tokens per leaf; 1 means that time falls in proportion to tokens. `model` is the share of
               the embedded engine's time in the model
"""

from __future__ import annotations

import argparse
import asyncio
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from actors.benchmarks.lines import print_figures
from actors.benchmarks.model_time import ModelTime
from actors.benchmarks.options import model_parser
from actors.benchmarks.saturated import Filling
from treeadv.command_line import positive
from treeadv.config import Config, SamplingConfig, parse
from treeadv.data import model_folder as models
from treeadv.data.problems import Problem
from treeadv.data.prompts import Prompter
from treeadv.data.tasks import problem_source
from treeadv.engines.base import Engine, Params
from treeadv.engines.registry import start_engine
from treeadv.forest import Forest
from treeadv.sampling.request import GrowRequest
from treeadv.sampling.sampler import grow

if TYPE_CHECKING:
    from treeadv.engines.sglang.engine import SGLangEngine

ROUNDS = 3  # rounds of each rule with --saturated
FAMILIES = [{"name": "chain_sum", "options": {"min_terms": 2, "max_terms": 4, "min_digits": 1, "max_digits": 2}}]


def main(argv: list[str]) -> None:
    p = model_parser("treeadv bench rollout", __doc__)
    p.add_argument("--engine", choices=("embedded", "sglang"), default="embedded")
    p.add_argument("--forests", type=positive, default=4, help="forests, all grown at a time unless --saturated")
    p.add_argument("--saturated", type=int, default=0, metavar="ROWS", help="keep ROWS rows in use")
    p.add_argument("--prompt-tokens", type=int, default=0, help="repeat each prompt until it has this number of tokens")
    p.add_argument("--leaves", type=positive, default=8)
    p.add_argument("--trees", type=positive, default=2)
    p.add_argument("--tau", type=float, default=0.5, help="fork threshold in nats")
    p.add_argument("--max-tokens", type=positive, default=48)
    p.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    p.add_argument("--threads", type=int, default=0)
    p.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="device of sglang's server")
    p.add_argument("--chunks", type=int, nargs="*", default=[1, 4, 8, 16, 48])
    p.add_argument("--small-pool", type=int, default=400)
    p.add_argument("--stubs", default="deploy/sglang_cpu/stubs")
    asyncio.run(_Bench(p.parse_args(argv)).run())


class _Bench:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.model = models.resolve(args.model, args.cache)
        prompter = Prompter(self.model)
        source = problem_source(self._config().task, 0)
        self.prompts = [prompter.encode(source[i]) for i in range(args.forests)]
        if args.prompt_tokens:
            self.prompts = [np.resize(prompt, args.prompt_tokens) for prompt in self.prompts]

    def _config(self, **sglang: object) -> Config:
        a = self.args
        return parse(
            {
                "run": {"root": "build", "name": "bench-rollout"},
                "task": {"source": "reasoning-gym", "families": FAMILIES},
                "generator": {
                    "engine": a.engine,
                    "dtype": a.dtype,
                    "threads": a.threads,
                    "rows": a.saturated or a.forests * a.leaves,
                    "sglang": {"device": a.device, "stubs": a.stubs, "chunk": 8, **sglang},
                },
            },
            "bench rollout",
        )

    def _sampling(self, rule: str) -> SamplingConfig:
        a = self.args
        trees = a.leaves if rule == "none" else a.trees
        return SamplingConfig(
            leaves=a.leaves, trees=trees, rule=rule, tau=a.tau, max_tokens=a.max_tokens, temperature=0.7
        )

    @asynccontextmanager
    async def _engine(self, **sglang: object) -> AsyncIterator[Engine]:
        engine = await start_engine(self._config(**sglang), self.model)
        try:
            yield engine
        finally:
            await engine.close()

    # ---- the measurements --------------------------------------------------------------------------------------------
    async def run(self) -> None:
        if self.args.saturated:
            return await self._saturated()
        async with self._engine() as engine:
            url = engine.members[0].url if self.args.engine == "sglang" else ""
            await self._forests(engine, "none")  # warms up the engine
            forest = await self._report("forest", engine, self._forests(engine, "entropy"), url)
            flat = await self._report("flat", engine, self._forests(engine, "none"), url)
            raw = await self._report("raw", engine, self._raw(engine), url)
            self._print(
                "saving",
                tokens=1 - forest["tokens_per_leaf"] / flat["tokens_per_leaf"],
                formula=forest["formula"],
                seconds=1 - forest["seconds_per_leaf"] / flat["seconds_per_leaf"],
            )
            self._print(
                "sampler",
                overhead=1 - flat["tokens_per_second"] / raw["tokens_per_second"],
                ms_per_token=flat["client_ms_per_token"] - raw["client_ms_per_token"],
            )
            if self.args.engine == "sglang":
                await self._on_sglang(engine, url)
        if self.args.engine == "sglang":
            async with self._engine(args={"max-total-tokens": self.args.small_pool}) as small:
                await self._report(
                    "small", small, self._forests(small, "entropy"), small.members[0].url, pool=self.args.small_pool
                )

    async def _saturated(self) -> None:
        """Measure forests and flat rollouts in turn for several rounds. Other load of the machine then affects both
        in the same way."""
        running = {"max-running-requests": self.args.saturated} if self.args.engine == "sglang" else {}
        async with self._engine(**({"args": running} if running else {})) as engine:
            timer = ModelTime(engine) if self.args.engine == "embedded" else None
            found: dict[str, list[dict[str, float]]] = {"entropy": [], "none": []}
            for _ in range(ROUNDS):
                for rule, rounds in found.items():
                    config = self._config().model_copy(update={"sampling": self._sampling(rule)})
                    filling = Filling(engine, config, self.prompts, timer)
                    rounds.append((await filling.measure(self.args.forests, self.args.forests)).figures())
                    self._print("saturated", rule=rule, **rounds[-1])
            mean = {rule: {k: fmean(f[k] for f in rounds) for k in rounds[0]} for rule, rounds in found.items()}
            seconds, tokens = (mean["entropy"][k] / mean["none"][k] for k in ("seconds_per_leaf", "tokens_per_leaf"))
            more = {"model": mean["entropy"]["model"]} if timer else {}
            self._print("ratio", seconds=seconds, tokens=tokens, time_over_tokens=seconds / tokens, **more)

    async def _on_sglang(self, engine: SGLangEngine, url: str) -> None:
        difference = engine.members[0].difference
        self._print("start", logprob_error=difference.logprob, entropy_error=difference.entropy)
        self._print("direct", **await self._direct(engine))
        for chunk in self.args.chunks:
            async with self._engine(url=url, chunk=chunk) as cut:
                await self._report("chunk", cut, self._forests(cut, "entropy"), url, chunk=chunk)

    async def _report(
        self, name: str, engine: Engine, work: Awaitable[Sequence[Forest | int]], url: str, **more: object
    ) -> dict[str, float]:
        before, evicted, started, cpu = engine.stats(), _evicted(url), time.perf_counter(), time.process_time()
        done = await work
        seconds, cpu, after = time.perf_counter() - started, time.process_time() - cpu, engine.stats()
        leaves = self.args.forests * self.args.leaves
        tokens, prompt = after.decoded_tokens - before.decoded_tokens, after.prompt_tokens - before.prompt_tokens
        figures = {
            "leaves": leaves,
            "tokens_per_leaf": tokens / leaves,
            "seconds_per_leaf": seconds / leaves,
            "tokens_per_second": tokens / seconds,
            "client_ms_per_token": 1000 * cpu / tokens,
            "prefix_reuse": (after.cached_tokens - before.cached_tokens) / prompt,
        }
        if url:
            figures["evicted_tokens"] = _evicted(url) - evicted
        if done and isinstance(done[0], Forest) and done[0].rule != "none":
            figures |= _sharing(done)
        self._print(name, **more, **figures)
        return figures

    async def _forests(self, engine: Engine, rule: str) -> list[Forest]:
        stamp = time.monotonic_ns()
        problem = Problem(id="p", problem="", answer="", verifier="exact", meta="")
        requests = [
            GrowRequest(forest_id=f"{rule}-{stamp}-{i}", problem=problem, prompt=p, seed=i)
            for i, p in enumerate(self.prompts)
        ]
        sampling = self._sampling(rule)
        growing = (grow(engine, request, sampling, self.args.tau, frozenset()) for request in requests)
        return await asyncio.gather(*growing)

    async def _raw(self, engine: Engine) -> list[int]:
        async def one(prompt: np.ndarray, name: str, i: int) -> int:
            params = Params(max_tokens=self.args.max_tokens, temperature=0.7, stop=frozenset(), seed=i)
            return len([d async for d in engine.generate(prompt, params, name, str(i))])

        names = [f"raw-{time.monotonic_ns()}-{i}" for i in range(len(self.prompts))]
        drawn = await asyncio.gather(
            *(one(p, n, i) for p, n in zip(self.prompts, names, strict=True) for i in range(self.args.leaves))
        )
        for name in names:
            await engine.release(name)
        return drawn

    async def _direct(self, engine: SGLangEngine) -> dict[str, float]:
        client, started = engine.members[0].client, time.perf_counter()
        drawing = {"temperature": 0.7, "max_new_tokens": self.args.max_tokens, "ignore_eos": True}
        prompts = [p.tolist() for p in self.prompts for _ in range(self.args.leaves)]
        asked = [client.generate({"input_ids": p, "sampling_params": drawing}) for p in prompts]
        tokens = sum(len(body["output_ids"]) for body in await asyncio.gather(*asked))
        seconds = time.perf_counter() - started
        return {"tokens_per_second": tokens / seconds, "seconds_per_leaf": seconds / len(asked)}

    def _print(self, name: str, **figures: object) -> None:
        print_figures(bench="rollout", engine=self.args.engine, way=name, **figures)


def _sharing(forests: list[Forest]) -> dict[str, float]:
    """Return the share of flattened tokens that were not drawn, and the estimate f (1 - M/G) of this share.

    G is the number of leaves and M the number of trees, so G - M leaves start at a fork. f is the mean relative
    position of these forks."""
    tokens, expanded = sum(f.tokens for f in forests), sum(f.expanded_tokens for f in forests)
    leaves, trees = sum(f.leaves for f in forests), sum(f.trees for f in forests)
    # A fork of n children starts n - 1 leaves; the first child continues the chain.
    places = [int(f.offset[s] + f.lengths[s]) for f in forests for s, c in enumerate(f.children) for _ in c[1:]]
    f = float(np.mean(places)) / (expanded / leaves) if places else 0.0
    return {"sharing": 1 - tokens / expanded, "f": f, "formula": f * (1 - trees / leaves)}


def _evicted(url: str) -> float:
    """Return the number of tokens that the server at `url` has evicted from its cache since its start; 0 if `url` is
    empty."""
    if not url:
        return 0.0
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as reply:
        families = text_string_to_metric_families(reply.read().decode())
        return sum(s.value for f in families for s in f.samples if s.name == "sglang:evicted_tokens_total")
