"""Updates a running SGLang server to a policy version. The steps are pause, load, flush and continue.

There are three transports: `disk` (safetensors in a folder that the server can read), `tensor` (shared memory of this
machine) and `distributed` (a broadcast from this process; NCCL on GPU, gloo on CPU). The pause retracts open requests.
They keep their tokens, and the server prefills them again with the new weights. Some releases cannot flush while
retracted requests wait (`flush`). There the requests start again.
"""

from __future__ import annotations

import asyncio
import base64
import io
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import safetensors.torch
import torch
import torch.multiprocessing

from treeadv.disk import replacing
from treeadv.engines.base import Weights
from treeadv.engines.fleet.member import Loaded, Refused
from treeadv.engines.sglang.client import Client

if TYPE_CHECKING:
    from treeadv.engines.sglang.process_group import UpdateGroup

FLUSH_TRIES = 50  # tries, 0.1 s apart; a server flushes only while no request runs


class Transport(Protocol):
    """A transport of weights.

    `push` returns when the server has confirmed all tensors. It raises `Refused` or `ServerGone`.
    """

    async def push(self, client: Client, version: int, tensors: dict[str, torch.Tensor]) -> None: ...

    async def close(self) -> None: ...


async def update(client: Client, transport: Transport, version: int, tensors: dict[str, torch.Tensor]) -> Loaded:
    """Load `version` into one server.

    After an error the server may have only some of the weights and must not serve.
    """
    started = time.perf_counter()
    client.stop_clock()
    try:
        await client.post("/pause_generation", {"mode": "retract"})
        await transport.push(client, version, tensors)
        await flush(client)
        served = int((await client.get("/model_info"))["weight_version"])
        if served != version:
            raise Refused(f"{client.url} reports version {served} after the update to {version}")
        await client.post("/continue_generation")
    finally:
        client.start_clock()
    return Loaded(version=version, bytes=sum(t.nbytes for t in tensors.values()), seconds=time.perf_counter() - started)


async def flush(client: Client) -> None:
    """Empty the radix cache, which has keys and values of older weights.

    Some releases flush while retracted requests wait. The other releases refuse. Then the requests are aborted
    (`reply.sent_back`) and sent again.
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
    """Return the tensors to send, in the dtypes of the publication: weights in `generator.dtype`, buffers in their own
    dtype.

    With tied embeddings the output matrix is the input matrix, so it is left out.
    """
    return {n: torch.as_tensor(w) for n, w in weights.items() if not (tied and n == "lm_head.weight")}


class Disk:
    """The transport by safetensors in `folder`, which the servers must be able to read.

    All servers read the same folder of a version, which gets its name when it is complete. Updates do not overlap, so
    only the newest version is kept.
    """

    def __init__(self, folder: Path, model_dir: str) -> None:
        """Remove the files of an earlier process in `folder`, because its version numbers may mean other weights."""
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
        place = self.folder / f"v{version}"
        if not place.is_dir():
            self.remove()
            with replacing(place, existing="refuse", durable=False) as scratch:  # no version is read after a crash
                scratch.mkdir(parents=True)
                shutil.copy(self._config, scratch)
                safetensors.torch.save_file(tensors, scratch / "model.safetensors", metadata={"format": "pt"})
        return place

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    async def close(self) -> None:
        """Do nothing, because all servers share the folder, and its owner removes it."""


class SharedMemory:
    """The transport by this machine's shared memory. Only the names and handles of tensors go over HTTP.

    `ranks` is the tensor-parallel size of the server.
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
        """Do nothing, because the transport keeps nothing between updates."""


def _share(tensors: dict[str, torch.Tensor]) -> str:
    """Return handles of the tensors' storages, as SGLang's MultiprocessingSerializer writes them.

    The handles are file names, because file descriptors need a common secret of multiprocessing, which the processes do
    not have.
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
    """Call begin_weight_update and end_weight_update around an update of tensors, in releases that have these calls."""
    bracketed = await client.offers("/begin_weight_update")
    if bracketed:
        await client.post("/begin_weight_update")
    yield
    if bracketed:
        await client.post("/end_weight_update")


class Broadcast:
    """The transport by a process group of this process (rank 0) and the ranks of the server.

    The first update makes the group."""

    def __init__(self, ranks: int, device: str, address: str, timeout: float) -> None:
        """Keep the settings.

        `address` is the address of this machine for the server. `timeout` bounds every collective, in seconds."""
        self._world, self._device, self._address, self._timeout = ranks + 1, device, address, timeout
        self._group: UpdateGroup | None = None

    async def push(self, client: Client, version: int, tensors: dict[str, torch.Tensor]) -> None:
        # This import is here because some builds lack torch.distributed, and only this transport needs it.
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
            # If the server refuses, this raises at once. The broadcast then ends at its timeout, and the group is not
            # used again.
            await asyncio.gather(
                client.post("/update_weights_from_distributed", described),
                asyncio.to_thread(broadcast, self._group, list(tensors.values()), self._device),
            )

    async def close(self) -> None:
        if self._group is not None:
            self._group.destroy()
