"""Bringing a policy version into a running SGLang server: pause, load, flush, go on.

Three ways to load: `disk` (safetensors in a folder that the server can read), `tensor` (shared memory of this machine)
and `distributed` (a broadcast from here; NCCL on GPU, gloo on CPU). Requests in flight are retracted: they keep their
tokens and are prefilled again under the new weights, so that none is lost. Where a release cannot do that (`flush`),
they begin again.
"""

from __future__ import annotations

import asyncio
import base64
import io
import shutil
import time
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, Protocol

import safetensors.torch
import torch
import torch.multiprocessing

from treeadv.engines.base import Weights
from treeadv.engines.fleet.member import Loaded, Refused
from treeadv.engines.sglang.client import Client

FLUSH_TRIES = 50  # 0.1 s apart; a server flushes only when nothing runs


class Transport(Protocol):
    """One way of loading. `push` returns when the server has said that it holds all tensors; it raises `Refused` or
    `ServerGone`.
    """

    async def push(self, client: Client, version: int, tensors: dict[str, torch.Tensor]) -> None: ...

    async def close(self) -> None: ...


async def update(client: Client, transport: Transport, version: int, tensors: dict[str, torch.Tensor]) -> Loaded:
    """Bring `version` into one server. When this raises, the server may hold half of it and must not serve."""
    started = time.perf_counter()
    client.stop_clock()
    try:
        await client.post("/pause_generation", {"mode": "retract"})
        await transport.push(client, version, tensors)
        await flush(client)
        held = int((await client.get("/model_info"))["weight_version"])
        if held != version:
            raise Refused(f"{client.url} says that it holds version {held} after it was given {version}")
        await client.post("/continue_generation")
    finally:
        client.start_clock()
    return Loaded(version=version, bytes=sum(t.nbytes for t in tensors.values()), seconds=time.perf_counter() - started)


async def flush(client: Client) -> None:
    """Empty the radix cache: what older weights computed must not be found again.

    Some releases flush under retracted requests; the others refuse to while any waits, so that those are sent back
    (`reply.sent_back`) and asked for again.
    """
    for _ in range(FLUSH_TRIES - 1):
        try:
            await client.post("/flush_cache")
            return
        except Refused:
            await client.post("/abort_request", {"abort_all": True})
            await asyncio.sleep(0.1)
    await client.post("/flush_cache")


def tensors_of(weights: Weights, tied: bool) -> dict[str, torch.Tensor]:
    """Return the tensors to send, as they were published: weights in `generator.dtype`, buffers in their own dtype.

    With tied embeddings the output matrix is the input's and is left out.
    """
    with warnings.catch_warnings():  # arrays in Ray's object store are read-only; they are only read
        warnings.filterwarnings("ignore", message=".*not writable.*")
        return {n: torch.as_tensor(w) for n, w in weights.items() if not (tied and n == "lm_head.weight")}


class Disk:
    """Safetensors in `folder`, which the servers must be able to read; a version's folder appears whole or not at all,
    and once for all servers. Versions are brought in one after the other, so that only the newest is kept.
    """

    def __init__(self, folder: Path, model_dir: str) -> None:
        """What an earlier process left in `folder` is removed: its version numbers may mean other weights."""
        self.folder, self._config = folder.resolve(), Path(model_dir) / "config.json"
        self._writing = asyncio.Lock()
        self.remove()

    async def push(self, client: Client, version: int, tensors: dict[str, torch.Tensor]) -> None:
        async with self._writing:
            place = await asyncio.to_thread(self._write, version, tensors)
        await client.post(
            "/update_weights_from_disk",
            {
                "model_path": str(place),
                "weight_version": str(version),
                "flush_cache": False,
                "keep_pause": True,
            },
        )

    def _write(self, version: int, tensors: dict[str, torch.Tensor]) -> Path:
        place, scratch = self.folder / f"v{version}", self.folder / f".v{version}"
        if not place.is_dir():
            self.remove()
            scratch.mkdir(parents=True)
            shutil.copy(self._config, scratch)
            safetensors.torch.save_file(tensors, scratch / "model.safetensors", metadata={"format": "pt"})
            scratch.rename(place)
        return place

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    async def close(self) -> None:
        """The folder is shared by all servers; its owner removes it."""


class SharedMemory:
    """Tensors in this machine's shared memory; only their names and handles go over HTTP. `ranks`: the server's
    tensor-parallel size.
    """

    def __init__(self, ranks: int) -> None:
        self._ranks = ranks

    async def push(self, client: Client, version: int, tensors: dict[str, torch.Tensor]) -> None:
        handles = await asyncio.to_thread(_share, tensors)
        async with _session(client):
            await client.post(
                "/update_weights_from_tensor",
                {
                    "serialized_named_tensors": [handles] * self._ranks,
                    "weight_version": str(version),
                    "flush_cache": False,
                },
            )

    async def close(self) -> None:
        """Nothing is kept between updates."""


def _share(tensors: dict[str, torch.Tensor]) -> str:
    """Handles of the tensors' storages, as SGLang's MultiprocessingSerializer writes them.

    By file name: handing over a descriptor needs the two processes to share multiprocessing's secret, which these do
    not.
    """
    before = torch.multiprocessing.get_sharing_strategy()
    torch.multiprocessing.set_sharing_strategy("file_system")
    try:
        out = io.BytesIO()
        ForkingPickler(out).dump([(name, t.contiguous().share_memory_()) for name, t in tensors.items()])
        return base64.b64encode(out.getvalue()).decode()
    finally:
        torch.multiprocessing.set_sharing_strategy(before)


@asynccontextmanager
async def _session(client: Client) -> AsyncIterator[None]:
    """The bracket that releases with begin_weight_update want around tensors; older ones have no such call and need
    none.
    """
    bracketed = await client.offers("/begin_weight_update")
    if bracketed:
        await client.post("/begin_weight_update")
    yield
    if bracketed:
        await client.post("/end_weight_update")


class Broadcast:
    """One process group of this process (rank 0) and the server's ranks; the group is made at the first update."""

    def __init__(self, ranks: int, device: str, address: str, timeout: float) -> None:
        """`address`: this machine's, as the server sees it; `timeout` seconds bound every collective."""
        self._world, self._device, self._address, self._timeout = ranks + 1, device, address, timeout
        self._group: Any = None

    async def push(self, client: Client, version: int, tensors: dict[str, torch.Tensor]) -> None:
        # Imported here: torch.distributed is not built everywhere, and only this transport needs it.
        from treeadv.engines.sglang.process_group import broadcast, join

        if self._group is None:
            backend = "nccl" if self._device == "cuda" else "gloo"
            self._group = await join(client, self._address, self._world, backend, self._timeout)
        described = {
            "names": list(tensors),
            "dtypes": [str(t.dtype).removeprefix("torch.") for t in tensors.values()],
            "shapes": [list(t.shape) for t in tensors.values()],
            "group_name": self._group.name,
            "weight_version": str(version),
            "flush_cache": False,
        }
        async with _session(client):
            # Where the server refuses, this returns at once and leaves the broadcast to its time-out: the group is not
            # used again.
            await asyncio.gather(
                client.post("/update_weights_from_distributed", described),
                asyncio.to_thread(broadcast, self._group, list(tensors.values()), self._device),
            )

    async def close(self) -> None:
        if self._group is not None:
            self._group.destroy()
