"""Builds a policy from a model folder. Each rank reads its own rows of the folder and never holds the whole model."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM

from treeadv.data.folder_tensors import FolderReader, FolderTensors, stored_tensors
from treeadv.data.model_check import longest_path, model_config
from treeadv.errors import BadInput, one_line
from treeadv.learning import attention, experts, sharding
from treeadv.learning.blocks import Block
from treeadv.learning.packing import Packed
from treeadv.learning.policy import Policy
from treeadv.visible import visible_logger

log = visible_logger(__name__)
# Tokens of the prompt and of each branch in the check of a model. On a GPU these lengths give kernel blocks that are
# fully visible, partly visible and not visible.
CPU_CHECK, GPU_CHECK = (2, 3), (200, 300)
_ONLY = "and cannot attend to a tree: use a model with full attention in every layer (docs/models.md)"


def load(
    folder: str | Path,
    device: str = "cpu",
    compute: torch.dtype = torch.float32,
    mesh: DeviceMesh | None = None,
    lora_rank: int = 0,
    seed: int = 0,
) -> Policy:
    """Read a model folder into float32 master weights. The forward pass computes in the dtype `compute`.

    With `mesh` the weights are sharded over its ranks, and all ranks call this function. With `lora_rank` the weights
    are frozen and a LoRA adapter is trained. `seed` fixes the initial weights of the adapter. Raises `BadInput` for a
    model that cannot attend to a tree."""
    folder = Path(folder)
    model, name = _build(folder)
    with FolderReader(folder) as reader:
        tensors = _matched(model, reader, folder, name)
        policy = Policy(model, torch.device(device))
        if lora_rank:
            policy.adapt(lora_rank)
        if mesh:
            sharding.shard(policy, model.get_decoder().layers, mesh, compute)
        _allocate(policy)
        for key, p in stored_tensors(policy.model):
            if ".lora_" not in key:
                fill(p, tensors, reader, plain_name(key))
    _draw_adapter(policy, seed)
    policy.eval()
    _check(policy, compute, f"{folder}: {name}")
    sharding.reshard(policy)
    return policy


def check_weights(folder: Path) -> None:
    """Raise `BadInput` if no model can be built from config.json, or if its weights are of another model.

    Reads the names and shapes of the tensors, and no weights. A warning names tensors that the model does not use."""
    model, name = _build(folder)
    with FolderReader(folder) as reader:
        tensors = _matched(model, reader, folder, name)
    ignored = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_unexpected or ()]
    if unused := [key for key in tensors.unexpected if not any(pattern.search(key) for pattern in ignored)]:
        log.warning("%s: %s does not use %d tensors of the folder, as %s", folder, name, len(unused), unused[0])


def _matched(model: Any, reader: FolderReader, folder: Path, name: str) -> FolderTensors:
    """Return the tensors of a folder, matched with the model. Raises `BadInput` for weights of another model."""
    tensors = FolderTensors(model, reader.names)
    fault = f"has no tensor {tensors.missing[0]} of {name}" if tensors.missing else ""
    for key, p in stored_tensors(model):
        if not fault and key in tensors.unchanged and (found := reader.shape(tensors.unchanged[key])) != tuple(p.shape):
            fault = f"has a tensor {key} of shape {found}, but {name} needs {tuple(p.shape)}"
    if fault:
        raise BadInput(
            f"{folder} {fault}, because it is incomplete or of another model; copy or download the model again"
        )
    return tensors


def plain_name(name: str) -> str:
    """Return a parameter's name without the wrapper modules of an adapter."""
    return name.replace(".base_layer", "")


def _build(folder: Path) -> tuple[Any, str]:
    """Return the model of a configuration, without weights, and its name. Raises `BadInput`."""
    config: Any = model_config(folder)
    name = (config.architectures or [type(config).__name__])[0]
    longest_path(folder)  # raises BadInput for a model that the engines refuse
    try:
        with parameters_on_meta():
            model: Any = AutoModelForCausalLM.from_config(
                config, dtype=torch.float32, attn_implementation=attention.NAME
            )
    except Exception as e:  # the values of the configuration fit no model; transformers raises many types
        if isinstance(e, ValueError) and "attention" in str(e):
            raise BadInput(f"{folder}: {name} does not take an attention function {_ONLY}") from e
        raise no_model(folder / "config.json", e) from e
    if not model._supports_attention_backend:
        raise BadInput(f"{folder}: {name} does not take an attention function {_ONLY}")
    experts.choose(model)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # dropout would add noise to the ratio to the behaviour policy
    return model, name


def no_model(config_json: Path, fault: Exception) -> BadInput:
    """Return the error of a configuration from which transformers builds no model."""
    return BadInput(
        f"{config_json}: no model can be built from this configuration ({one_line(fault)}); use another model"
    )


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Create the parameters of new modules on the meta device. Buffers (rotary frequencies) keep their values."""
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, p: nn.Parameter | None) -> None:
        if p is not None and not p.is_meta:  # a tied parameter, registered twice, stays one object
            p = nn.Parameter(p.to("meta"), p.requires_grad)
        register(module, name, p)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _allocate(policy: Policy) -> None:
    """Allocate this rank's rows of every parameter on the policy's device. Buffers keep their values."""
    buffers = {name: b.clone() for name, b in policy.named_buffers()}
    policy.to_empty(device=policy.device)
    policy.model.tie_weights()
    for name, b in policy.named_buffers():
        b.copy_(buffers[name])


@torch.no_grad()
def fill(p: torch.Tensor, tensors: FolderTensors, reader: FolderReader, name: str) -> None:
    """Read this rank's rows of the parameter `name` from a folder. Raises `BadInput` for a tensor of another shape."""
    found = tensors.tensor(name, reader, sharding.rows(p))
    own = sharding.local(p)
    if found.shape != own.shape:
        raise BadInput(
            f"tensor {name} has shape {tuple(found.shape)}, but this model needs "
            f"{tuple(own.shape)}; resume with the model of the run"
        )
    own.copy_(found)


@torch.no_grad()
def _draw_adapter(policy: Policy, seed: int) -> None:
    """Draw the matrices A of the adapter as peft does (Kaiming uniform) and set the matrices B to 0.

    The values do not depend on the number of ranks."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in policy.model.named_parameters():
        if ".lora_A." in name:
            bound = math.sqrt(1 / p.shape[1])
            whole = torch.rand(p.shape, generator=generator) * 2 * bound - bound
            sharding.local(p).copy_(whole[sharding.rows(p)])
        elif ".lora_B." in name:
            sharding.local(p).zero_()


def _check(policy: Policy, compute: torch.dtype, name: str) -> None:
    try:
        error = tree_error(policy, compute, *(GPU_CHECK if policy.flex else CPU_CHECK))
    except BadInput as e:
        raise BadInput(f"{name}: {e} {_ONLY}") from e
    if error > 1e-3:
        raise BadInput(
            f"{name} ignores the tree's mask (log-probs differ by {error:.2g} nats from a flat pass) {_ONLY}"
        )


@torch.no_grad()
def tree_error(policy: Policy, compute: torch.dtype, prompt: int, branch: int) -> float:
    """Return the largest difference in nats between the log-probs of two packed branches of a prompt and of flat passes
    with the model's own attention.

    The difference is large if a model ignores the mask, or needs a feature that `treeadv.learning.attention` does not
    have. In bfloat16 five times the rounding error of a flat pass is subtracted from the difference. All ranks of a
    sharded policy call this function."""
    P, B, n = prompt, branch, prompt + 2 * (branch - 1)
    ids = (np.arange(P + 2 * B) * 7 + 1) % policy.vocabulary
    start, first, second = ids[:P], ids[P : P + B], ids[P + B :]
    place, at = np.arange(P, P + B - 1), np.arange(1, B)
    fork = Packed(
        pieces=(),
        token=np.concatenate([start, first[:-1], second[:-1]]),
        position=np.concatenate([np.arange(P), place, place]),
        end=np.repeat([n, P + B - 1, n], [P, B - 1, B - 1]),
        blocks=(Block(query=(0, P)), Block(query=(P, n), context=((0, P),))),
        row=np.arange(P - 1, n),
        source=np.concatenate([[0], at, [0], at + B - 1]),
        target=ids[P:],
        temperature=np.ones(n - P + 1),
        span=(),
    )

    def flat() -> torch.Tensor:
        return torch.cat([policy(chain(np.concatenate([start, b]), P)) for b in (first, second)])

    config = policy.model.config
    with torch.autocast(policy.device.type, compute, enabled=compute != torch.float32):
        packed = policy(fork)
        config._attn_implementation = "eager"
        try:
            rounded = flat()
            with torch.autocast(policy.device.type, enabled=False), _Float32():
                exact = flat()
        finally:
            config._attn_implementation = attention.NAME
    return float((packed - exact).abs().max() - 5 * (rounded - exact).abs().max())


class _Float32(TorchFunctionMode):
    """A mode that multiplies matrices in float32, including the weights that the ranks gather in bfloat16."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func in _PRODUCTS:
            args = tuple(a.float() if torch.is_tensor(a) and a.dtype == torch.bfloat16 else a for a in args)
        return func(*args, **(kwargs or {}))


_PRODUCTS = {
    nn.functional.linear,
    nn.functional.grouped_mm,
    torch.matmul,
    torch.bmm,
    torch.Tensor.matmul,
    torch.Tensor.__matmul__,
    torch.Tensor.bmm,
}


def chain(ids: np.ndarray, prompt: int) -> Packed:
    """Return a micro-batch of one sequence without a fork. It has no blocks, so the model uses its own attention."""
    n = len(ids) - 1
    return Packed(
        pieces=(),
        token=ids[:-1],
        position=np.arange(n),
        end=np.full(n, n),
        blocks=(),
        row=np.arange(prompt - 1, n),
        source=np.arange(n - prompt + 1),
        target=ids[prompt:],
        temperature=np.ones(n - prompt + 1),
        span=(),
    )
