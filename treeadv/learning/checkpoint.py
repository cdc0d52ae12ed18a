"""Files of a checkpoint: a plain Hugging Face model folder and the state of the trainer."""

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
class TrainerState:
    """The state of a trainer that a checkpoint writes and restores in place.

    `source` is the model folder whose tokenizer files are copied into the checkpoint."""

    policy: Policy
    optimizer: torch.optim.Optimizer
    source: Path

    def write(self, folder: Path, progress: Progress) -> None:
        """Write this rank's share of the model and of the trainer's state into the existing `folder`.

        Rank 0 also writes the files that are not shared out. All ranks call this method. Their folders may be on
        different machines."""
        rank, world = _rank_and_world()
        weights.write_folder(self.policy, self.source, folder)
        with _without_warning():
            dcp.save(self._state(), checkpoint_id=folder / _STATE, no_dist=world == 1)
        if rank == 0:
            torch.save(torch.get_rng_state(), folder / _STATE / "rng.pt")
            (folder / _STATE / "progress.json").write_text(json.dumps(progress))

    def restore(self, folder: Path) -> Progress:
        """Load weights, optimizer state and random state in place, on any number of ranks, and return the progress.

        Raises `BadInput` if the folder is not a checkpoint or is of another model."""
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
            dist.barrier()  # The caller may delete its copy of the folder, so every rank reads the folder first
        return progress

    def _state(self) -> dict:
        """Return the optimizer state by parameter name, and the LoRA adapter if the policy has one.

        The model folder holds the merged weights, from which the adapter cannot be recovered."""
        model, state = get_state_dict(self.policy, self.optimizer, options=_TRAINABLE)
        return {"optimizer": state} | ({"model": model} if self.policy.adapted else {})


@contextmanager
def _without_warning() -> Iterator[None]:
    """Silence torch's warning that no process group exists. One rank needs no process group."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _rank_and_world() -> tuple[int, int]:
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
