"""FSDP2 over the ranks of a process group."""

from __future__ import annotations

import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from treeadv.learning.policy import Policy


def shard(policy: Policy, device: str) -> None:
    """Shard every decoder layer, then what is left (embedding, last norm, head), gathered in float32.

    Autocast makes bfloat16 of what it makes so on one rank. A mixed precision of FSDP would halve the bytes of a gather, but also put
    norms, rotary angles and the residual in bfloat16, which one rank keeps in float32.
    """
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    for layer in policy.model.get_decoder().layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(policy, mesh=mesh)
