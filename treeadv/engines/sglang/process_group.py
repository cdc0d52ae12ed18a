"""A process group of a trainer (rank 0) and the ranks of an inference server. Both keep their existing groups.

PyTorch's public calls make only one world per process. This module therefore calls `_new_process_group_helper` in the
same way as `init_custom_process_group`, which SGLang and training systems for SGLang use. Both sides use the same store
prefix and the same group name.
"""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

from treeadv.engines.fleet.member import Refused
from treeadv.engines.sglang.client import Client
from treeadv.engines.sglang.server import free_port


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateGroup:
    name: str
    handle: dist.ProcessGroup

    def destroy(self) -> None:
        dist.destroy_process_group(self.handle)


async def join(client: Client, address: str, world: int, backend: str, timeout: float) -> UpdateGroup:
    """Make the group. This process has rank 0, and the server has the ranks from 1. `timeout` is in seconds."""
    name, port = f"treeadv-{uuid.uuid4().hex[:8]}", free_port()
    told = client.post(
        "/init_weights_update_group",
        {
            "master_address": address,
            "master_port": port,
            "rank_offset": 1,
            "world_size": world,
            "group_name": name,
            "backend": backend,
        },
    )
    _, group = await asyncio.gather(
        told, asyncio.to_thread(_make, f"tcp://{address}:{port}", name, world, backend, timeout)
    )
    return group


def _make(url: str, name: str, world: int, backend: str, timeout: float) -> UpdateGroup:
    limit = timedelta(seconds=timeout)
    try:
        store, rank, world = next(c10d.rendezvous(url, 0, world, timeout=limit))
        store.set_timeout(limit)
        handle, _ = c10d._new_process_group_helper(
            world,
            rank,
            [],
            c10d.Backend(backend),
            c10d.PrefixStore(name, store),
            group_name=c10d.GroupName(name),
            timeout=limit,
        )
    except RuntimeError as e:
        raise Refused(f"the process group for weights could not be made: {e}") from e
    c10d._world.pg_group_ranks[handle] = {i: i for i in range(world)}
    return UpdateGroup(name=name, handle=handle)


def broadcast(group: UpdateGroup, tensors: list[torch.Tensor], device: str) -> None:
    """Send every tensor from rank 0, in order. Raises `Refused` if the other ranks do not receive them in time."""
    try:
        for tensor in tensors:
            dist.broadcast(tensor.to(device).contiguous(), src=0, group=group.handle)
    except RuntimeError as e:
        raise Refused(f"the broadcast of the weights failed: {e}") from e
