"""The SGLang engine, which grows forests on the radix cache of SGLang servers over their HTTP API.

SGLang shares only the prefix of a running request. The drawn tokens enter the radix cache when the request ends. The
engine therefore draws a branch in chunks. Each chunk is a request for a few tokens after all earlier tokens of the
branch. The engine yields the tokens of a chunk when the request has ended. The next chunk, and a sibling that forks
anywhere in the chunk, then find their whole prefix in the cache. The distribution of a token does not depend on the
chunks, so the distribution of a forest does not depend on them.
"""

from __future__ import annotations

import tempfile
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from treeadv.config import Config
from treeadv.data.model_check import longest_path
from treeadv.engines.base import Draw, EngineLost, EngineStats, Params, Weights
from treeadv.engines.fleet.addresses import resolve
from treeadv.engines.fleet.fleet import Fleet
from treeadv.engines.fleet.member import Loaded, Refused, ServerGone
from treeadv.engines.sglang.member import Model, SGLangMember
from treeadv.engines.sglang.reply import Chunk
from treeadv.engines.sglang.weights import Disk, tensors_of
from treeadv.errors import BadInput
from treeadv.forest import Finish


class SGLangEngine:
    """The `Engine` on one started server or on running servers. It ignores `Params.seed` (docs/sglang.md)."""

    def __init__(
        self, fleet: Fleet[SGLangMember, dict[str, torch.Tensor]], disk: Disk, chunk: int, longest: int
    ) -> None:
        """Keep the settings. Callers use `create`.

        `chunk` is the number of tokens of a request. `longest` is the length of the longest path in tokens."""
        self._fleet, self._disk, self._chunk, self._longest = fleet, disk, chunk, longest
        self._stats = EngineStats()
        self._busy_since = 0.0

    @classmethod
    def check(cls, config: Config) -> None:
        """Raise `BadInput` for a configuration that the engine cannot serve."""
        g = config.generator
        if g.sglang.url and (g.count > 1 or config.scaling.enabled):
            raise BadInput(
                f"generator.count={g.count}: with generator.sglang.url "
                "one generator drives all servers; set generator.count=1 and scaling.enabled=false"
            )
        if g.sglang.url and g.sglang.weights == "disk" and "://" in config.run.root:
            raise BadInput(
                f"run.root={config.run.root}: servers cannot read weights from an object store; set"
                " generator.sglang.weights=distributed"
            )

    @classmethod
    def cuda_option(cls, config: Config) -> str:
        """Return the option that makes a server of this engine use a CUDA device, or "" without such an option."""
        s = config.generator.sglang
        return "generator.sglang.device=cuda" if not s.url and s.device == "cuda" else ""

    @classmethod
    async def create(cls, config: Config, model_dir: Path, index: int) -> SGLangEngine:
        """Return the engine of generator number `index` when its servers serve the model in `model_dir` as version 0.

        Without `generator.sglang.url` the engine starts a server. With `generator.sglang.url` the engine uses all
        servers behind this address. Raises `BadInput` for a server of another model and for other faults that the user
        must correct.
        """
        cls.check(config)
        longest = longest_path(model_dir)
        s, model = config.generator.sglang, Model.read(str(model_dir))
        run = config.run.name or uuid.uuid4().hex
        root = Path(tempfile.gettempdir() if "://" in config.run.root else config.run.root)
        disk = Disk(root / run / f"sglang-{index}" / "weights", str(model_dir))

        async def find() -> list[str]:
            return await resolve("generator.sglang.url", s.url) if s.url else [""]

        def prepare(weights: Weights) -> dict[str, torch.Tensor]:
            model.check(weights)
            return tensors_of(weights, model.tied)

        fleet = Fleet(
            key="generator.sglang",
            make=lambda url: SGLangMember(config, model, run, disk, url),
            find=find,
            prepare=prepare,
            patience=s.start_timeout,
        )
        await fleet.start()
        return cls(fleet, disk, s.chunk, longest)

    @property
    def version(self) -> int:
        return self._fleet.version

    @property
    def longest(self) -> int:
        limits = [m.limits for m in self._fleet.members if m.limits is not None]
        return min([self._longest, *(min(limit.context, limit.pool) for limit in limits)])

    @property
    def gone(self) -> str:
        return self._fleet.gone

    @property
    def members(self) -> list[SGLangMember]:
        """Return the servers.

        Reports read their address, their limits, their difference to a plain forward pass, and their output.
        """
        return self._fleet.members

    @property
    def updates(self) -> list[Loaded]:
        """Return every weight update so far."""
        return self._fleet.updates

    async def generate(self, prefix: np.ndarray, params: Params, namespace: str, tree: str) -> AsyncIterator[Draw]:
        """Draw one branch, one chunk after another (`Engine.generate`).

        After a weight update the next chunk uses the cache key of the new version, so no token is drawn from keys and
        values of two versions.
        """
        ids = prefix.tolist()
        left, version = params.max_tokens, 0
        while True:
            chunk = await self._draw(ids, min(left, self._chunk), params, namespace, tree)
            for token, logprob, entropy, drawn_by in zip(
                chunk.tokens, chunk.logprobs, chunk.entropies, chunk.versions, strict=True
            ):
                if drawn_by < version:
                    raise EngineLost(f"the policy version goes backwards, from {version} to {drawn_by}")
                left, version = left - 1, drawn_by
                ids.append(token)
                finish = Finish.STOP if token in params.stop else Finish.LENGTH if left == 0 else None
                yield Draw(token=token, logprob=logprob, entropy=entropy, version=drawn_by, finish=finish)
                if finish is not None:
                    return
            if chunk.aborted:
                raise EngineLost(f"the server ended the request: {chunk.aborted}")

    async def _draw(self, ids: list[int], tokens: int, params: Params, namespace: str, tree: str) -> Chunk:
        """Draw one chunk on the tree's server or, after its loss, on another ready server.

        A lost request gave no token, so the chunk is drawn again from the same prefix.
        """
        self._count(running=1)
        try:
            while True:
                member = await self._fleet.server_of(namespace, tree)
                try:
                    chunk = await member.draw(ids, tokens, params.temperature, params.stop)
                except ServerGone as gone:
                    if not self._fleet.lose(member, str(gone)):
                        raise EngineLost(str(gone)) from gone
                except Refused as bad:
                    raise EngineLost(f"{member.url}: {bad}") from bad
                else:
                    self._count(prompt=chunk.prompt, cached=chunk.cached, decoded=len(chunk.tokens))
                    return chunk
        finally:
            self._count(running=-1)

    def _count(self, prompt: int = 0, cached: int = 0, decoded: int = 0, running: int = 0) -> None:
        s, now = self._stats, time.perf_counter()
        busy = now - self._busy_since if s.running else 0.0
        self._busy_since = now
        self._stats = EngineStats(
            prompt_tokens=s.prompt_tokens + prompt,
            cached_tokens=s.cached_tokens + cached,
            decoded_tokens=s.decoded_tokens + decoded,
            running=s.running + running,
            busy_seconds=s.busy_seconds + busy,
        )

    async def release(self, namespace: str) -> None:
        """Remove the trees of a forest from the load of their servers. SGLang evicts their prefixes itself."""
        self._fleet.release(namespace)

    async def update_weights(self, version: int, weights: Weights) -> float:
        """Load a version into every server (`Engine.update_weights`).

        `weights` maps the name of every tensor to the tensor.
        """
        started = time.perf_counter()
        await self._fleet.update(version, weights)
        return time.perf_counter() - started

    def stats(self) -> EngineStats:
        if self._stats.running:
            self._count()
        room = sum(m.limits.running for m in self._fleet.members if m.limits is not None)
        return replace(self._stats, free=room - self._stats.running)

    async def close(self) -> None:
        """End the servers that this engine started."""
        await self._fleet.close()
        self._disk.remove()
