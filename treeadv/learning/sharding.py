"""FSDP2 over the ranks of a process group: every rank holds its share of weights, gradients and optimizer state."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from treeadv.errors import BadInput

_FLOAT32 = MixedPrecisionPolicy(cast_forward_inputs=False)


def mesh(device: str, replicas: int = 1) -> DeviceMesh:
    """Return the mesh of all ranks; with `replicas` > 1, that many copies of the sharded model (HSDP)."""
    world = dist.get_world_size()
    if world % replicas:
        raise BadInput(f"learner.replicas={replicas} does not divide learner.count={world}: choose a divisor")
    if replicas == 1:
        return init_device_mesh(device, (world,))
    return init_device_mesh(device, (replicas, world // replicas), mesh_dim_names=("replicate", "shard"))


def shard(policy: nn.Module, layers: nn.ModuleList, mesh: DeviceMesh, compute: torch.dtype) -> None:
    """Shard the decoder layers, which ranks gather one at a time in `compute`, then embedding, last norm and head in
    float32.

    The norms of a layer are gathered in float32 too, so that any number of ranks computes what one rank computes under
    autocast. Gradients are summed in float32.
    """
    half = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for layer in layers:
        if compute != torch.float32:
            fully_shard(_norms(layer), mesh=mesh, mp_policy=_FLOAT32)
        fully_shard(layer, mesh=mesh, mp_policy=_FLOAT32 if compute == torch.float32 else half)
    fully_shard(policy, mesh=mesh, mp_policy=_FLOAT32)


def reduce_gradients(policy: Any, now: bool) -> None:
    """Say whether the next backward pass sums gradients over the ranks, or adds them to a whole gradient on each
    rank."""
    policy.set_requires_gradient_sync(now)


def reshard(policy: Any) -> None:
    """Free the whole embedding and head, which ranks keep after a forward pass because a backward pass usually
    follows."""
    if isinstance(policy, FSDPModule):
        policy.reshard()


def _norms(layer: nn.Module) -> list[nn.Module]:
    """Return the modules of a layer whose own parameters are all vectors."""
    own = [(m, list(m.parameters(recurse=False))) for m in layer.modules()]
    return [m for m, parameters in own if parameters and all(p.dim() == 1 for p in parameters)]


def rows(p: torch.Tensor) -> slice:
    """Return the rows of a parameter that this rank holds."""
    if not isinstance(p, DTensor):
        return slice(None)
    shape, offset = compute_local_shape_and_global_offset(p.shape, p.device_mesh, p.placements)
    return slice(offset[0], offset[0] + shape[0])


def local(p: torch.Tensor) -> torch.Tensor:
    """Return the part of a parameter that this rank holds."""
    return p.to_local() if isinstance(p, DTensor) else p


def full(t: torch.Tensor) -> torch.Tensor:
    """Return the whole tensor of a sharded one. A collective: every rank calls it."""
    return t.full_tensor() if isinstance(t, DTensor) else t
