"""Weights in and out of a policy, one tensor at a time: sharded or not, with a LoRA adapter merged or not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor, distribute_tensor

from treeadv.errors import BadInput
from treeadv.learning.policy import Policy

_SHARD_BYTES = 4 << 30
_INDEX = "model.safetensors.index.json"


def full(t: torch.Tensor) -> torch.Tensor:
    """The whole tensor of a shard (a collective: every rank calls it), or the tensor itself."""
    return t.full_tensor() if isinstance(t, DTensor) else t


def tensors(policy: Policy) -> Iterator[tuple[str, torch.Tensor]]:
    """(Hugging Face name, whole tensor where it lies) of every weight, gathered one by one. Tied weights come once; LoRA comes merged.

    Every rank must run it to the end.
    """
    for name, p in policy.model.named_parameters():
        if ".lora_" in name:
            continue
        t = full(p.detach())
        module: Any = policy.model.get_submodule(name.rpartition(".")[0].removesuffix(".base_layer"))
        if ".base_layer." in name and name.endswith(".weight"):
            for adapter, factor in module.scaling.items():
                A, B = full(module.lora_A[adapter].weight.detach()), full(module.lora_B[adapter].weight.detach())
                t = t + factor * (B @ A)
        yield name.replace(".base_layer.", "."), t


def buckets(policy: Policy, max_bytes: int, dtype: torch.dtype, writer: bool) -> Iterator[dict[str, torch.Tensor]]:
    """The weights in `dtype` on CPU as dictionaries of at most `max_bytes` (a larger tensor stands alone), copies safe to keep.

    Every rank must run it to the end, but only the `writer` is given anything: the others' copies would be made to be thrown away.
    """
    bucket: dict[str, torch.Tensor] = {}
    held = 0
    for name, t in tensors(policy):
        if not writer:
            continue
        size = t.numel() * dtype.itemsize
        if bucket and held + size > max_bytes:
            yield bucket
            bucket, held = {}, 0
        bucket[name] = t.to(dtype, copy=t.device.type == "cpu").cpu().contiguous()  # cast before it travels
        held += size
    if bucket:
        yield bucket


def write_folder(policy: Policy, source: Path, folder: Path, writer: bool) -> None:
    """A plain Hugging Face folder: float32 safetensors, config and the tokenizer files of `source`. Only the `writer` rank writes."""
    names: dict[str, str] = {}
    total = 0
    files: list[str] = []
    for i, bucket in enumerate(buckets(policy, _SHARD_BYTES, torch.float32, writer)):
        files.append(f"model-{i + 1:05d}.safetensors")
        names |= dict.fromkeys(bucket, files[-1])
        total += sum(t.nbytes for t in bucket.values())
        save_file(bucket, folder / files[-1], metadata={"format": "pt"})
    if not writer:
        return
    if len(files) == 1:
        (folder / files[0]).rename(folder / "model.safetensors")
    else:
        (folder / _INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": names}))
    for file in source.iterdir():
        if file.is_file() and file.suffix in (".json", ".txt", ".model", ".jinja") and file.name not in ("config.json", _INDEX):
            shutil.copy(file, folder)
    policy.model.config.save_pretrained(folder)


def read_folder(policy: Policy, folder: Path) -> None:
    """Put the weights of a folder that `write_folder` wrote into the policy, each rank its shard. `BadInput` on what does not fit."""
    wanted = dict(policy.model.named_parameters())
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as content, torch.no_grad():
            for name in content.keys():  # noqa: SIM118 (not a dictionary)
                p, t = wanted.pop(name, None), content.get_tensor(name)
                if p is None or p.shape != t.shape:
                    raise BadInput(f"{file}: tensor {name} {tuple(t.shape)} is not of this model; resume with the model of the run")
                p.copy_(distribute_tensor(t, p.device_mesh, p.placements) if isinstance(p, DTensor) else t)
    if wanted:
        raise BadInput(f"{folder}: no tensor {next(iter(wanted))} there; resume with the model of the run")
