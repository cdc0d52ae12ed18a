"""Shards a policy with FSDP2. Every rank holds its share of weights, gradients and optimizer state."""

from __future__ import annotations

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
    """Return the device mesh of all ranks.

    With `replicas` > 1 the mesh holds this number of copies of the model (HSDP).
    """
    world = dist.get_world_size()
    if world % replicas:
        raise BadInput(f"learner.replicas={replicas} does not divide learner.count={world}: choose a divisor")
    if replicas == 1:
        return init_device_mesh(device, (world,))
    return init_device_mesh(device, (replicas, world // replicas), mesh_dim_names=("replicate", "shard"))


def shard(policy: nn.Module, layers: nn.ModuleList, mesh: DeviceMesh, compute: torch.dtype) -> None:
    """Shard the decoder layers and then embedding, last norm and head.

    Ranks gather the decoder layers one at a time in `compute`. They gather norms, embedding and head in float32, so
    several ranks compute the same values as one rank under autocast. Gradients are summed in float32.
    """
    half = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for layer in layers:
        if compute != torch.float32:
            fully_shard(_norms(layer), mesh=mesh, mp_policy=_FLOAT32)
        fully_shard(layer, mesh=mesh, mp_policy=_FLOAT32 if compute == torch.float32 else half)
    fully_shard(policy, mesh=mesh, mp_policy=_FLOAT32)


def reduce_gradients(policy: nn.Module, now: bool) -> None:
    """Set whether the next backward pass sums gradients over the ranks.

    If not, each rank adds its gradients to a gradient that is not sharded."""
    assert isinstance(policy, FSDPModule)
    policy.set_requires_gradient_sync(now)


def reshard(policy: nn.Module) -> None:
    """Free the gathered embedding and head. FSDP keeps them after a forward pass for the backward pass."""
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
    """Return the full tensor of a sharded tensor. This is a collective, so every rank must call it."""
    return t.full_tensor() if isinstance(t, DTensor) else t
