"""Files of a checkpoint: a plain Hugging Face model beside the state of the trainer."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from treeadv.errors import BadInput
from treeadv.learning import weights
from treeadv.learning.policy import Policy

Progress = dict[str, int]  # the trainer's counters by name
_STATE = "trainer"
_TRAINABLE = StateDictOptions(ignore_frozen_params=True)


@dataclass(frozen=True, kw_only=True)
class Checkpointed:
    """What a checkpoint reads and restores in place; `source` is the folder whose tokenizer files go with the model."""

    policy: Policy
    optimizer: torch.optim.Optimizer
    source: Path

    def write(self, folder: Path, progress: Progress) -> None:
        """Write this rank's files into the existing `folder`: its share of the model and of the trainer's state, and on
        rank 0 the rest. All ranks call it; their folders may be on different machines."""
        rank, world = _rank_and_world()
        weights.write_folder(self.policy, self.source, folder)
        with _without_warning():
            dcp.save(self._state(), checkpoint_id=folder / _STATE, no_dist=world == 1)
        if rank == 0:
            torch.save(torch.get_rng_state(), folder / _STATE / "rng.pt")
            (folder / _STATE / "progress.json").write_text(json.dumps(progress))

    def restore(self, folder: Path) -> Progress:
        """Load weights, optimizer and random state in place, on any number of ranks. Returns the progress as it
        was written. `BadInput` if the folder is not a checkpoint or is of another model."""
        if not (folder / _STATE / "progress.json").is_file():
            raise BadInput(f"{folder}: not a checkpoint of treeadv (no {_STATE}/progress.json)")
        if not self.policy.adapted:
            weights.read_folder(self.policy, folder)
        _, world = _rank_and_world()
        state = self._state()
        with _without_warning():
            dcp.load(state, checkpoint_id=folder / _STATE, no_dist=world == 1)
        set_state_dict(
            self.policy, self.optimizer, model_state_dict=state.get("model", {}), optim_state_dict=state["optimizer"],
            options=StateDictOptions(ignore_frozen_params=True, strict=False),
        )  # fmt: skip
        torch.set_rng_state(torch.load(folder / _STATE / "rng.pt"))
        progress = json.loads((folder / _STATE / "progress.json").read_text())
        if world > 1:
            dist.barrier()  # every rank has read the folder: the caller may delete a copy of it
        return progress

    def _state(self) -> dict:
        """Optimizer state by parameter name, and the adapter where one is trained (the merged folder cannot be taken
        apart)."""
        model, state = get_state_dict(self.policy, self.optimizer, options=_TRAINABLE)
        return {"optimizer": state} | ({"model": model} if self.policy.adapted else {})


@contextmanager
def _without_warning() -> Iterator[None]:
    """Silence torch where it reports that it runs without a process group, which is intended with one rank."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _rank_and_world() -> tuple[int, int]:
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
