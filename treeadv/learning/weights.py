"""Weights of a policy under the names of its Hugging Face folder: sharded or not, with a LoRA adapter merged or not."""

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
    """Yield (name in the folder, whole tensor on the policy's device) of every weight and persistent buffer, one
    parameter at a time.

    Tied weights come once, and LoRA adapters come merged. A collective: every rank runs it to the end.
    """
    for name, p in stored_tensors(policy.model):
        if ".lora_" not in name:
            t = full(p.detach())
            for delta in _adapters(policy.model, name):
                t = t + delta
            yield from in_folder(policy.model, plain_name(name), t).items()


def _adapters(model: torch.nn.Module, name: str) -> Iterator[torch.Tensor]:
    """Yield what each LoRA adapter adds to the parameter `name`; nested adapters adapt several parameters of one
    module."""
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


def buckets(policy: Policy, max_bytes: int, dtype: torch.dtype) -> Iterator[dict[str, torch.Tensor]]:
    """Yield this rank's share of the weights on CPU, as dictionaries of at most `max_bytes` (a larger tensor is alone).

    Parameters come in `dtype`, buffers in their own. The ranks take turns, so that each holds and sends only its share;
    the tensors are copies. A collective: every rank runs it to the end."""
    for _, bucket in _dealt(policy, max_bytes, dtype):
        if bucket:
            yield bucket


def _dealt(policy: Policy, max_bytes: int, dtype: torch.dtype) -> Iterator[tuple[list[str], dict[str, torch.Tensor]]]:
    """Yield (names of a bucket, its tensors or nothing if the bucket is another rank's)."""
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
            bucket[name] = t.to(own, copy=t.device.type == "cpu").cpu().contiguous()  # cast before it travels
    if names:
        yield names, bucket


def write_folder(policy: Policy, source: Path, folder: Path) -> None:
    """Write a plain Hugging Face folder: float32 safetensors, config and the tokenizer files of `source`.

    Each rank writes its share of the files into its own `folder`, which may be the same; rank 0 also writes the rest.
    """
    file_of: dict[str, str] = {}
    size = sum(p.numel() * p.element_size() for _, p in stored_tensors(policy.model))
    world = dist.get_world_size() if dist.is_initialized() else 1
    for i, (names, bucket) in enumerate(_dealt(policy, min(FILE_BYTES, -(-size // world)), torch.float32)):
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
    """Read the weights of a checkpoint into the policy, each rank its rows. `BadInput` for a folder of another
    model."""
    with FolderReader(folder) as reader:
        found = FolderTensors(policy.model, reader.names)
        for fault, names in (("unknown", found.unexpected), ("missing", found.missing)):
            if names:
                raise BadInput(f"{folder}: {fault} tensor {names[0]}; resume with the model of the run")
        for name, p in stored_tensors(policy.model):
            fill(p, found, reader, name)
