"""Checkpoint folders: a plain Hugging Face model beside the trainer's state, complete or not there at all."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from treeadv.errors import BadInput
from treeadv.learning import weights
from treeadv.learning.policy import Policy
from treeadv.storage.disk import publish

_STATE, _EXTRA = "trainer", "extra.json"
_TRAINABLE = StateDictOptions(ignore_frozen_params=True)


def save(
    folder: Path, policy: Policy, optimizer: torch.optim.Optimizer, source: Path, progress: dict[str, int], extra: dict[str, Any]
) -> None:
    """Write all of it beside `folder`, flush it to disk and rename: a crash leaves the folder whole or absent. All ranks call it."""
    rank, world = _place()
    scratch = folder.with_name(f".{folder.name}.partial")
    if rank == 0:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
    _barrier(world)
    write(scratch, policy, optimizer, source, progress, extra)
    if rank == 0:
        publish(scratch, folder)
    _barrier(world)


def write(
    folder: Path, policy: Policy, optimizer: torch.optim.Optimizer, source: Path, progress: dict[str, int], extra: dict[str, Any]
) -> None:
    """This rank's files of a checkpoint: its part of the trainer's state; rank 0 has the model and the rest too."""
    rank, world = _place()
    weights.write_folder(policy, source, folder, writer=rank == 0)
    with _quiet():
        dcp.save(_state(policy, optimizer), checkpoint_id=folder / _STATE, no_dist=world == 1)
    if rank == 0:
        torch.save(torch.get_rng_state(), folder / _STATE / "rng.pt")
        (folder / _STATE / "progress.json").write_text(json.dumps(progress))
        (folder / _EXTRA).write_text(json.dumps(extra))


def restore(folder: Path, policy: Policy, optimizer: torch.optim.Optimizer) -> tuple[dict[str, int], dict[str, Any]]:
    """Load weights, optimizer and RNG in place; returns (progress, extra) as they were given to `save`. Any number of ranks."""
    if not (folder / _STATE / "progress.json").is_file():
        raise BadInput(f"{folder}: not a checkpoint of treeadv (no {_STATE}/progress.json there)")
    if not policy.adapted:
        weights.read_folder(policy, folder)
    _, world = _place()
    state = _state(policy, optimizer)
    with _quiet():
        dcp.load(state, checkpoint_id=folder / _STATE, no_dist=world == 1)
    set_state_dict(
        policy, optimizer, model_state_dict=state.get("model", {}), optim_state_dict=state["optimizer"],
        options=StateDictOptions(ignore_frozen_params=True, strict=False),
    )  # fmt: skip
    torch.set_rng_state(torch.load(folder / _STATE / "rng.pt"))
    found = json.loads((folder / _STATE / "progress.json").read_text()), json.loads((folder / _EXTRA).read_text())
    _barrier(world)  # all have read it: a copy may now be deleted
    return found


def _state(policy: Policy, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Optimizer state by parameter name, and the adapter where one is trained (the merged folder could not be taken apart)."""
    model, state = get_state_dict(policy, optimizer, options=_TRAINABLE)
    return {"optimizer": state} | ({"model": model} if policy.adapted else {})


@contextmanager
def _quiet() -> Iterator[None]:
    """One process without a process group is meant: torch need not guess so aloud."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _place() -> tuple[int, int]:
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def _barrier(world: int) -> None:
    if world > 1:
        dist.barrier()
