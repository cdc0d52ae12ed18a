"""Reads and writes the weights of a policy under the tensor names of its Hugging Face folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from treeadv.data.folder_tensors import FolderReader, FolderTensors, in_folder, stored_tensors
from treeadv.errors import BadInput
from treeadv.learning.loading import fill, plain_name
from treeadv.learning.policy import Policy
from treeadv.learning.sharding import full

FILE_BYTES = 1 << 30
_INDEX = "model.safetensors.index.json"


def tensors(policy: Policy) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name in the folder, full tensor on the policy's device) of every weight and persistent buffer.

    Tied weights are yielded once. LoRA adapters are merged into their weights. This is a collective, so every rank must
    run the iterator to its end.
    """
    for name, p in stored_tensors(policy.model):
        if ".lora_" not in name:
            t = full(p.detach())
            for delta in _adapters(policy.model, name):
                t = t + delta
            yield from in_folder(policy.model, plain_name(name), t).items()


def _adapters(model: torch.nn.Module, name: str) -> Iterator[torch.Tensor]:
    """Yield the matrix that each LoRA adapter adds to the parameter `name`.

    Adapters are nested if several parameters of one module are adapted."""
    path, _, leaf = name.rpartition(".")
    while path.endswith(".base_layer"):
        path = path.removesuffix(".base_layer")
        module: Any = model.get_submodule(path)
        if getattr(module, "parameter_name", "weight") != leaf:
            continue
        for adapter, factor in module.scaling.items():
            A, B = full(module.lora_A[adapter].weight.detach()), full(module.lora_B[adapter].weight.detach())
            experts = getattr(module, "num_experts", 1)
            if experts == 1:
                yield factor * (B @ A)
            else:  # peft's ParamWrapper: A [experts x rank, in], B [out, rank x experts]
                order = "eoi" if module._did_swap_in_out_features else "eio"
                A, B = A.view(experts, -1, A.shape[1]), B.view(B.shape[0], -1, experts)
                yield factor * torch.einsum(f"ore,eri->{order}", B, A)


def buckets(policy: Policy, max_bytes: int, dtype: torch.dtype, copy: bool) -> Iterator[dict[str, torch.Tensor]]:
    """Yield this rank's share of the weights on the CPU, in dictionaries of at most `max_bytes`.

    A tensor above `max_bytes` has a dictionary of its own. Parameters have the dtype `dtype`. Buffers keep their dtype.
    The buckets go to the ranks in turn, so a rank holds and sends only its share. Without `copy` a tensor may be
    a parameter itself, which the next step changes. This is a collective, so every rank must run the iterator to its
    end."""
    for _, bucket in _all_buckets(policy, max_bytes, dtype, copy):
        if bucket:
            yield bucket


def _all_buckets(
    policy: Policy, max_bytes: int, dtype: torch.dtype, copy: bool
) -> Iterator[tuple[list[str], dict[str, torch.Tensor]]]:
    """Yield (names, tensors) of every bucket. The tensors are empty if the bucket belongs to another rank."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    buffers = {n for n, _ in policy.model.named_buffers()}
    names: list[str] = []
    bucket: dict[str, torch.Tensor] = {}
    filled = turn = 0
    for name, t in tensors(policy):
        own = t.dtype if name in buffers else dtype
        size = t.numel() * own.itemsize
        if names and filled + size > max_bytes:
            yield names, bucket
            names, bucket, filled, turn = [], {}, 0, turn + 1
        names.append(name)
        filled += size
        if turn % world == rank:
            converted = t.to(own, copy=copy and t.device.type == "cpu")  # before the transfer, which is then smaller
            bucket[name] = converted.cpu().contiguous()
    if names:
        yield names, bucket


def write_folder(policy: Policy, source: Path, folder: Path) -> None:
    """Write a plain Hugging Face folder with float32 safetensors, the config and the tokenizer files of `source`.

    Each rank writes its share of the weight files into its `folder`. The ranks may use the same folder. Rank 0 writes
    the other files.
    """
    file_of: dict[str, str] = {}
    size = sum(p.numel() * p.element_size() for _, p in stored_tensors(policy.model))
    world = dist.get_world_size() if dist.is_initialized() else 1
    limit = min(FILE_BYTES, -(-size // world))
    for i, (names, bucket) in enumerate(_all_buckets(policy, limit, torch.float32, copy=False)):
        file = f"model-{i + 1:05d}.safetensors"
        file_of |= dict.fromkeys(names, file)
        if bucket:
            save_file(bucket, folder / file, metadata={"format": "pt"})
    if dist.is_initialized() and dist.get_rank():
        return
    (folder / _INDEX).write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": file_of}))
    for path in source.iterdir():
        if (
            path.is_file()
            and path.suffix in (".json", ".txt", ".model", ".jinja")
            and path.name not in ("config.json", _INDEX)
        ):
            shutil.copy(path, folder)
    policy.model.config.save_pretrained(folder)


def read_folder(policy: Policy, folder: Path) -> None:
    """Read this rank's rows of a checkpoint's weights into the policy. Raises `BadInput` for another model's folder."""
    with FolderReader(folder) as reader:
        found = FolderTensors(policy.model, reader.names)
        for fault, names in (("unknown", found.unexpected), ("missing", found.missing)):
            if names:
                raise BadInput(f"{folder}: {fault} tensor {names[0]}; resume with the model of the run")
        for name, p in stored_tensors(policy.model):
            fill(p, found, reader, name)
