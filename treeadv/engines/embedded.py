"""The embedded engine. It uses continuous batching on a transformers model and computes exact entropies.

The rows of all decoding branches form one packed sequence in the model's linear layers. Attention is computed for each
forest (`packing`). Branches share keys and values along prefixes (`prefix_cache`). Each branch has its own seed, so its
tokens do not depend on the other branches of the batch, except for rounding errors of the batched matrix products.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from transformers import AttentionInterface, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from treeadv.config import Config
from treeadv.data.folder_tensors import FolderTensors, stored_tensors
from treeadv.data.model_check import longest_path
from treeadv.engines.base import Draw, EngineLost, EngineStats, Params, Weights
from treeadv.engines.drawing import draw_rows
from treeadv.engines.packing import Step, TokenPath, attend, pack
from treeadv.engines.prefix_cache import PrefixCache
from treeadv.errors import BadInput
from treeadv.forest import Finish

ATTENTION = "treeadv_slots"
CHECKED = 640  # tokens of the longest path of the start-up check
LIMITS = {"float32": 1e-3, "bfloat16": 0.5}  # largest allowed difference to a plain forward pass, in nats
transformers_logging.disable_progress_bar()


@dataclass(slots=True, eq=False)
class _Branch:
    """A request that the engine has not finished."""

    namespace: str
    tokens: list[int]  # the prefix and all drawn tokens
    params: Params
    prefix_length: int
    rng: np.random.Generator
    out: asyncio.Queue[Draw | BaseException] = field(default_factory=asyncio.Queue)
    path: TokenPath | None = None  # set while the branch has a row

    def finish(self, token: int) -> Finish | None:
        if token in self.params.stop:
            return Finish.STOP
        return Finish.LENGTH if len(self.tokens) - self.prefix_length >= self.params.max_tokens else None


class EmbeddedEngine:
    """The `Engine` on a transformers causal language model on the CPU (Llama, Qwen2, Qwen3 and similar models)."""

    def __init__(self, model_dir: str | Path, rows: int = 48, dtype: str = "float32", threads: int = 0) -> None:
        """Load the model. At most `rows` branches decode at a time. The other branches wait. With `threads` 0 the
        number of threads of torch does not change.
        """
        if threads:
            torch.set_num_threads(threads)
        AttentionInterface.register(ATTENTION, attend)
        self.model = AutoModelForCausalLM.from_pretrained(
            model_dir, dtype=getattr(torch, dtype), attn_implementation=ATTENTION
        ).eval()
        config = self.model.config
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._shape = (config.num_hidden_layers, config.num_key_value_heads, head_dim, self.model.dtype)
        self._groups = config.num_attention_heads // config.num_key_value_heads
        self.longest = longest_path(model_dir)
        self.version = 0
        self.gone = ""
        self._rows = rows
        self._waiting: list[tuple[int, int, _Branch]] = []  # a heap with the branches of older forests first
        self._active: list[_Branch] = []
        self._ages: dict[str, int] = {}  # order of arrival of the forests, by namespace
        self._numbers = itertools.count()
        self._caches: dict[str, PrefixCache] = {}
        self._stats = EngineStats()
        self._turn = asyncio.Lock()
        self._wake = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None

    @classmethod
    def check(cls, config: Config) -> None:
        """Raise `BadInput` for a configuration that the engine cannot serve."""
        if gpus := config.generator.gpus:
            raise BadInput(
                f"generator.gpus={gpus:g}: the embedded engine runs on the CPU; set generator.engine=sglang, or 0"
            )

    @classmethod
    def cuda_option(cls, config: Config) -> str:
        """Return "", because the engine runs on the CPU."""
        return ""

    @classmethod
    async def create(cls, config: Config, model_dir: Path, index: int) -> EmbeddedEngine:
        """Load the model of `model_dir` as policy version 0."""
        g = config.generator
        engine = cls(model_dir, g.rows, g.dtype, g.threads or os.cpu_count() or 1)
        try:
            error, limit = engine.difference(), LIMITS[g.dtype]
        except BadInput as e:
            raise BadInput(f"{model_dir}: {e}: use another model (docs/models.md)") from e
        if error > limit:
            raise BadInput(
                f"{model_dir}: log-probs differ by {error:.2g} nats from "
                f"a plain forward of the model, more than {limit:g}; "
                "its attention has terms that are not computed: use another model (docs/models.md)"
            )
        return engine

    # ---- the contract ------------------------------------------------------------------------------------------------
    async def generate(self, prefix: np.ndarray, params: Params, namespace: str, tree: str) -> AsyncIterator[Draw]:
        if self.gone:
            raise EngineLost(self.gone)
        if self._loop is None:
            self._loop = asyncio.create_task(self._run(), name="embedded engine")
        rng = np.random.Generator(np.random.Philox(params.seed))
        branch = _Branch(namespace, prefix.tolist(), params, len(prefix), rng)
        self._wait(branch)
        self._wake.set()
        try:
            while True:
                draw = await branch.out.get()
                if isinstance(draw, BaseException):
                    raise EngineLost(self.gone) from draw
                yield draw
                if draw.finish is not None:
                    return
        finally:
            self._forget(branch)

    async def release(self, namespace: str) -> None:
        self._caches.pop(namespace, None)
        self._ages.pop(namespace, None)

    async def update_weights(self, version: int, weights: Weights) -> float:
        if version < self.version:
            raise ValueError(f"policy version {version} is older than the engine's {self.version}")
        async with self._turn:  # no step runs while the weights change
            started = time.perf_counter()
            await asyncio.to_thread(self._load, weights)
            # No branch may read keys and values of older weights, so the branches with a row compute their path again.
            for branch in self._active:
                branch.path = None
                self._wait(branch)
            self._active = []
            self._caches.clear()
            self.version = version
            return time.perf_counter() - started

    def stats(self) -> EngineStats:
        running = len(self._active)
        return replace(self._stats, running=running, free=self._rows - running - len(self._waiting))

    async def close(self) -> None:
        if self._loop:
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)

    # ---- the loop ----------------------------------------------------------------------------------------------------
    async def _run(self) -> None:
        try:
            while True:
                await self._wake.wait()
                async with self._turn:
                    self._admit()
                    started = time.perf_counter()
                    # The step does not run in a thread. Otherwise the branches of a step, and with them its rounding
                    # errors, would depend on the duration of the previous step.
                    rows = self._step()
                    self._deliver(rows, time.perf_counter() - started)
                if not (self._active or self._waiting):
                    self._wake.clear()
                await asyncio.sleep(0)
        except Exception as fault:  # the consumer of each branch raises it again, and so does an await of the task
            self.gone = f"the engine failed: {fault!r}"
            for branch in [*self._active, *(waiting for _, _, waiting in self._waiting)]:
                branch.out.put_nowait(fault)
            raise

    def _wait(self, branch: _Branch) -> None:
        age = self._ages.setdefault(branch.namespace, next(self._numbers))
        heapq.heappush(self._waiting, (age, next(self._numbers), branch))

    def _admit(self) -> None:
        """Give free rows to waiting branches. The branches of a forest get adjacent rows."""
        while self._waiting and len(self._active) < self._rows:
            branch = heapq.heappop(self._waiting)[2]
            cache = self._caches.get(branch.namespace)
            if cache is None:
                cache = self._caches[branch.namespace] = PrefixCache(*self._shape)
            branch.path = TokenPath(cache=cache, tokens=branch.tokens)
            self._active.append(branch)
        self._active.sort(key=lambda b: self._ages[b.namespace])

    def _forget(self, branch: _Branch) -> None:
        if branch in self._active:
            self._active.remove(branch)
        elif waiting := [entry for entry in self._waiting if entry[2] is branch]:
            self._waiting.remove(waiting[0])
            heapq.heapify(self._waiting)

    def _deliver(self, drawn: list[tuple[_Branch, int, float, float]], seconds: float) -> None:
        active = set(self._active)
        ended = set()
        for branch, token, logprob, entropy in drawn:
            if branch not in active:  # the consumer closed the branch during the step
                continue
            branch.tokens.append(token)
            finish = branch.finish(token)
            branch.out.put_nowait(
                Draw(token=token, logprob=logprob, entropy=entropy, version=self.version, finish=finish)
            )
            if finish is not None:
                ended.add(branch)
        if ended:
            self._active = [b for b in self._active if b not in ended]
        self._count(decoded_tokens=len(drawn), busy_seconds=seconds)

    def _count(self, **more: float) -> None:
        self._stats = replace(self._stats, **{name: getattr(self._stats, name) + n for name, n in more.items()})

    @torch.inference_mode()
    def difference(self) -> float:
        """Return the largest difference in nats between the log-probabilities of this engine and of the model's
        attention.

        The difference is taken over likely tokens after two branches. If the model allows it, the branches are longer
        than a prefill step, so the check covers effects of positions.
        """
        length = min(self.longest - 1, CHECKED)
        ids = [(7 * i + 1) % self.model.config.vocab_size for i in range(length + 1)]
        branches = [ids[:length], [*ids[: length // 2], *ids[length // 2 + 1 :]]]
        cache = PrefixCache(*self._shape)
        paths = [TokenPath(cache=cache, tokens=tokens) for tokens in branches]
        ours: dict[int, torch.Tensor] = {}
        while len(ours) < len(paths):
            step = pack(paths, self._groups, self.model.dtype)
            ours |= zip(step.drawing, self._logits(step), strict=True)
        config = self.model.config
        config._attn_implementation = "eager"
        try:
            plain = [self.model(torch.tensor([tokens]), use_cache=False).logits[0, -1] for tokens in branches]
        finally:
            config._attn_implementation = ATTENTION
        worst = 0.0
        for i, logits in enumerate(plain):
            top = logits.float().log_softmax(-1).topk(min(20, len(logits)))
            worst = max(worst, float((ours[i].float().log_softmax(-1)[top.indices] - top.values).abs().max()))
        return worst

    # ---- one step --------------------------------------------------------------------------------
    @torch.inference_mode()
    def _step(self) -> list[tuple[_Branch, int, float, float]]:
        """Compute one step. Returns (branch, token, log-probability, entropy) of every branch that drew a token."""
        branches = list(self._active)
        paths = [b.path for b in branches if b.path is not None]
        if not paths:
            return []
        new = [p for p in paths if not p.slots]
        step = pack(paths, self._groups, self.model.dtype)
        started = [p for p in new if p.slots]
        self._count(prompt_tokens=sum(len(p.tokens) for p in started), cached_tokens=sum(p.found for p in started))
        logits = self._logits(step)
        drawing = [branches[i] for i in step.drawing]
        drawn = draw_rows(logits, [b.params for b in drawing], [b.rng.random() for b in drawing])
        return [(b, *row) for b, row in zip(drawing, drawn, strict=True)]

    def _logits(self, step: Step) -> torch.Tensor:
        """Return the logits [len(step.last), V] of the rows that a token is drawn from."""
        return self.model(
            input_ids=torch.tensor([step.tokens]),
            position_ids=torch.tensor([step.positions]),
            use_cache=False,
            logits_to_keep=torch.tensor(step.last, dtype=torch.long),
            parts=step.parts,
        ).logits[0]

    def _load(self, weights: Weights) -> None:
        found = FolderTensors(self.model, weights)
        if found.unexpected or found.missing:
            faults = f"unknown {found.unexpected[:3]}, missing {found.missing[:3]}"
            raise ValueError(f"these weights are of another model: {faults}")
        for name, own in stored_tensors(self.model):
            own.detach().copy_(found.tensor(name, lambda key, rows: torch.as_tensor(weights[key])[rows]))
