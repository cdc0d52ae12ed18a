"""FSDP2 over the ranks of a process group."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from treeadv.learning.policy import Policy


def shard(policy: Policy, device: str, dtype: torch.dtype) -> None:
    """Shard every decoder layer, then what is left (embedding, last norm, head): float32 shards, gathered and computed in `dtype`."""
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    how = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for layer in policy.model.get_decoder().layers:
        fully_shard(layer, mesh=mesh, mp_policy=how)
    fully_shard(policy, mesh=mesh, mp_policy=how)
