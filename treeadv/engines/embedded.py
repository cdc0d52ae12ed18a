"""The embedded engine: continuous batching over a transformers model, keys and values shared along prefixes, exact
entropy.

All branches that decode are one packed sequence through the model's linear layers; only attention goes forest by
forest, each row reading the slots of its own path (`prefix_cache`). A branch's random numbers come from its own seed,
so what is drawn does not depend on which branches happen to be in the batch (up to ties within float rounding of the
batched matrix products).
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from treeadv.config import Config
from treeadv.data.folder_tensors import FolderTensors, stored_tensors
from treeadv.engines.base import Draw, EngineLost, EngineStats, Params, Weights
from treeadv.engines.drawing import draw_rows
from treeadv.engines.prefix_cache import PrefixCache
from treeadv.errors import BadInput
from treeadv.forest import Finish

ATTENTION = "treeadv_slots"
transformers_logging.disable_progress_bar()


@dataclass(slots=True, eq=False)
class _Branch:
    """One request while it runs. `tokens` is its prefix and all that it drew; `slots` are those computed so far."""

    namespace: str
    tokens: list[int]
    prefix_len: int
    params: Params
    rng: np.random.Generator
    out: asyncio.Queue[Draw | BaseException] = field(default_factory=asyncio.Queue)
    slots: list[int] = field(default_factory=list)

    def finish(self, token: int) -> Finish | None:
        if token in self.params.stop:
            return Finish.STOP
        return Finish.LENGTH if len(self.tokens) - self.prefix_len >= self.params.max_tokens else None


@dataclass(slots=True)
class _Part:
    """The rows of one forest in a step: which rows of the packed sequence, where they write, what each may read."""

    cache: PrefixCache
    rows: slice
    written: list[int]  # rows, counted from rows.start, whose keys and values are new
    slots: torch.Tensor  # [len(written)]
    mask: torch.Tensor  # [rows, slots in use] True where a row may read


class EmbeddedEngine:
    """`Engine` on a transformers causal language model on the CPU (Llama, Qwen2, Qwen3 and their like)."""

    def __init__(self, model_dir: str | Path, rows: int = 48, dtype: str = "float32", threads: int = 0) -> None:
        """`rows` branches decode side by side, others wait; `threads` 0 leaves torch's own choice."""
        if threads:
            torch.set_num_threads(threads)
        AttentionInterface.register(ATTENTION, _attend)
        self.model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=getattr(torch, dtype), attn_implementation=ATTENTION).eval()
        config = self.model.config
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._shape = (config.num_hidden_layers, config.num_key_value_heads, head_dim, self.model.dtype)
        self.version = 0
        self.gone = ""
        self._rows = rows
        self._waiting: deque[_Branch] = deque()
        self._active: list[_Branch] = []
        self._caches: dict[str, PrefixCache] = {}
        self._stats = EngineStats()
        self._turn = asyncio.Lock()
        self._wake = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None

    @classmethod
    def check(cls, config: Config) -> None:
        """Raise `BadInput` for what the engine cannot do."""
        if gpus := config.generator.gpus:
            raise BadInput(
                f"generator.gpus={gpus:g}: the embedded engine runs on the CPU; set generator.engine=sglang, or 0"
            )

    @classmethod
    async def create(cls, config: Config, model_dir: Path, index: int) -> EmbeddedEngine:
        """Load the model of `model_dir` as policy version 0."""
        g = config.generator
        return cls(model_dir, g.rows, g.dtype, g.threads or os.cpu_count() or 1)

    # ---- the contract ------------------------------------------------------------------------------------------------
    async def generate(self, prefix: np.ndarray, params: Params, namespace: str, tree: str) -> AsyncIterator[Draw]:
        if self.gone:
            raise EngineLost(self.gone)
        if self._loop is None:
            self._loop = asyncio.create_task(self._run(), name="embedded engine")
        branch = _Branch(namespace, prefix.tolist(), len(prefix), params, np.random.Generator(np.random.Philox(params.seed)))
        self._waiting.append(branch)
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

    async def update_weights(self, version: int, weights: Weights) -> float:
        if version < self.version:
            raise ValueError(f"policy version {version} is older than the engine's {self.version}")
        async with self._turn:  # between two steps: nothing is being computed
            started = time.perf_counter()
            await asyncio.to_thread(self._load, weights)
            # What older weights computed must not be read again: running branches are taken back and prefilled anew.
            self._waiting.extendleft(reversed(self._active))
            for branch in self._active:
                branch.slots = []
            self._active = []
            self._caches.clear()
            self.version = version
            return time.perf_counter() - started

    def stats(self) -> EngineStats:
        return self._stats

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
                    # Not in a thread: which branches are in a step, and with them the rounding of its sums, must not
                    # depend on how long the step before it took.
                    rows = self._step()
                    self._deliver(rows, time.perf_counter() - started)
                if not (self._active or self._waiting):
                    self._wake.clear()
                await asyncio.sleep(0)
        except Exception as fault:  # every branch must hear of it: raised again in each consumer, and to whoever awaits the task
            self.gone = f"the engine failed: {fault!r}"
            for branch in [*self._active, *self._waiting]:
                branch.out.put_nowait(fault)
            raise

    def _admit(self) -> None:
        while self._waiting and len(self._active) < self._rows:
            self._active.append(self._waiting.popleft())

    def _forget(self, branch: _Branch) -> None:
        for place in (self._active, self._waiting):
            if branch in place:
                place.remove(branch)

    def _deliver(self, drawn: list[tuple[_Branch, int, float, float]], seconds: float) -> None:
        for branch, token, logprob, entropy in drawn:
            if branch not in self._active:  # its consumer went away during the step
                continue
            branch.tokens.append(token)
            finish = branch.finish(token)
            branch.out.put_nowait(Draw(token, logprob, entropy, self.version, finish))
            if finish is not None:
                self._active.remove(branch)
        s = self._stats
        self._stats = EngineStats(
            s.prompt_tokens, s.cached_tokens, s.decoded_tokens + len(drawn), len(self._active), s.busy_seconds + seconds
        )

    # ---- one step --------------------------------------------------------------------------------
    @torch.inference_mode()
    def _step(self) -> list[tuple[_Branch, int, float, float]]:
        branches = sorted(self._active, key=lambda b: b.namespace)
        if not branches:
            return []
        tokens: list[int] = []
        positions: list[int] = []
        last: list[int] = []
        parts: list[_Part] = []
        for namespace, group in itertools.groupby(branches, key=lambda b: b.namespace):
            parts.append(self._part(namespace, list(group), tokens, positions, last))
        logits = self.model(
            input_ids=torch.tensor([tokens]), position_ids=torch.tensor([positions]), use_cache=False,
            logits_to_keep=torch.tensor(last), parts=parts,
        ).logits[0]
        drawn = draw_rows(logits, [b.params for b in branches], [b.rng.random() for b in branches])
        return [(b, *row) for b, row in zip(branches, drawn, strict=True)]

    def _part(self, namespace: str, group: list[_Branch], tokens: list[int], positions: list[int], last: list[int]) -> _Part:
        """Lay the rows of one forest's branches behind the packed sequence; the last row of each is the one to draw
        from.
        """
        cache = self._caches.get(namespace) or self._caches.setdefault(namespace, PrefixCache(*self._shape))
        first = len(tokens)
        written: list[int] = []
        slots: list[int] = []
        reads: list[list[int]] = []
        for branch in group:
            new_request = not branch.slots
            path = branch.slots or cache.match(branch.tokens)
            fresh, new = cache.extend(path, branch.tokens[len(path) :])
            # A prefix that is here whole: only its last token is computed again, for its logits, and written nowhere.
            computed = len(fresh) or 1
            branch.slots = path + fresh
            for i in range(len(branch.tokens) - computed, len(branch.tokens)):
                if branch.slots[i] in new:
                    written.append(len(tokens) - first)
                    slots.append(branch.slots[i])
                tokens.append(branch.tokens[i])
                positions.append(i)
                reads.append(branch.slots[: i + 1])
            last.append(len(tokens) - 1)
            if new_request:
                self._count_prefix(len(branch.tokens), len(branch.tokens) - computed)
        mask = torch.zeros(len(reads), cache.used, dtype=torch.bool)
        row = torch.repeat_interleave(torch.arange(len(reads)), torch.tensor([len(r) for r in reads]))
        mask[row, torch.tensor(list(itertools.chain.from_iterable(reads)))] = True
        return _Part(cache, slice(first, len(tokens)), written, torch.tensor(slots, dtype=torch.long), mask)

    def _count_prefix(self, prompt: int, cached: int) -> None:
        s = self._stats
        self._stats = EngineStats(s.prompt_tokens + prompt, s.cached_tokens + cached, s.decoded_tokens, s.running, s.busy_seconds)

    def _load(self, weights: Weights) -> None:
        found = FolderTensors(self.model, weights)
        if found.unexpected or found.missing:
            faults = f"unknown {found.unexpected[:3]}, missing {found.missing[:3]}"
            raise ValueError(f"these weights are of another model: {faults}")
        for name, own in stored_tensors(self.model):
            own.detach().copy_(found.tensor(name, lambda key, rows: torch.as_tensor(weights[key])[rows]))


def _attend(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: None,
    scaling: float, parts: list[_Part], **_unused: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: query [1, heads, rows, dim], key and value [1, kv heads, rows, dim], rows
    packed by forest.

    The query heads of a key/value head are folded into rows, so that keys and values are never repeated.
    """
    heads, dim = query.shape[1], query.shape[3]
    out = torch.empty_like(query)
    for part in parts:
        keys, values = part.cache.keys[module.layer_idx], part.cache.values[module.layer_idx]
        if part.written:
            keys[:, part.slots] = key[0, :, part.rows][:, part.written]
            values[:, part.slots] = value[0, :, part.rows][:, part.written]
        kv_heads, used = keys.shape[0], part.mask.shape[1]
        folded = query[0, :, part.rows].reshape(1, kv_heads, -1, dim)
        mask = part.mask.repeat(heads // kv_heads, 1)
        read = F.scaled_dot_product_attention(folded, keys[None, :, :used], values[None, :, :used], attn_mask=mask, scale=scaling)
        out[0, :, part.rows] = read.reshape(heads, -1, dim)
    return out.transpose(1, 2), None
