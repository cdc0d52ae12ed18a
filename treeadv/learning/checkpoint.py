"""The files of a checkpoint: a plain Hugging Face model and the state of the trainer.

All files are safetensors or JSON, so a checkpoint from an untrusted source runs no code when it is read.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.tensor import DTensor

from treeadv.errors import BadInput, one_line
from treeadv.learning import weights
from treeadv.learning.policy import Policy

Progress = dict[str, int]  # the trainer's counters by name
_STATE = "trainer"
_FILE_BYTES = 1 << 26  # size of a file of a rank; saving needs up to twice this memory in addition to the state
_TENSORS = "tensors"  # folder in the folder of the state, with the files of torch's distributed checkpoints
_RANDOM = "random.safetensors"
_PROGRESS = "progress.json"
_PICKLED = ("rng.pt", ".metadata")  # files of earlier releases; reading them can run code
_TRAINABLE = StateDictOptions(ignore_frozen_params=True)


@dataclass(frozen=True, kw_only=True)
class TrainerState:
    """The state of a trainer that a checkpoint writes and restores in place.

    `source` is a model folder. Its tokenizer files are copied into the checkpoint."""

    policy: Policy
    optimizer: torch.optim.Optimizer
    source: Path

    def write(self, folder: Path, progress: Progress) -> None:
        """Write this rank's share of the model and of the trainer's state into the existing `folder`.

        Rank 0 also writes the files that are the same for all ranks. All ranks call this method. Their folders may be
        on different machines."""
        rank, world = _rank_and_world()
        weights.write_folder(self.policy, self.source, folder)
        tensors = self._tensors(self._state())
        with _without_warning():
            # The writer copies a file before it writes it, so a checkpoint with a single file would double the memory.
            place, files = str(folder / _STATE / _TENSORS), _files(tensors)
            writer = HuggingFaceStorageWriter(place, files, save_distributed=True)
            dcp.save(tensors, storage_writer=writer, no_dist=world == 1)
        if rank == 0:
            save_file({"cpu": torch.get_rng_state()}, folder / _STATE / _RANDOM)
            (folder / _STATE / _PROGRESS).write_text(json.dumps(progress))

    def restore(self, folder: Path) -> Progress:
        """Load weights, optimizer and random state in place, on any number of ranks.

        Returns the progress as it was written. The optimizer keeps its settings. Raises `BadInput` if the folder is not
        a checkpoint, belongs to another model, or belongs to an earlier release."""
        progress = _progress(folder / _STATE)
        if not self.policy.adapted:
            weights.read_folder(self.policy, folder)
        _, world = _rank_and_world()
        state = self._state()
        with _without_warning(), _one_line(folder / _STATE):
            reader = HuggingFaceStorageReader(str(folder / _STATE / _TENSORS))
            dcp.load(self._tensors(state), storage_reader=reader, no_dist=world == 1)
            torch.set_rng_state(load_file(folder / _STATE / _RANDOM)["cpu"])
        set_state_dict(
            self.policy, self.optimizer, model_state_dict=state.get("model", {}), optim_state_dict=state["optimizer"],
            options=StateDictOptions(ignore_frozen_params=True, strict=False),
        )  # fmt: skip
        if world > 1:
            dist.barrier()  # A caller may delete its copy after this, so every rank must have read the folder.
        return progress

    def _state(self) -> dict[str, Any]:
        """Return the optimizer state by parameter name, and the adapter if one is trained.

        The adapter is stored here, because it cannot be recovered from the merged weights of the folder."""
        model, state = get_state_dict(self.policy, self.optimizer, options=_TRAINABLE)
        return {"optimizer": state} | ({"model": model} if self.policy.adapted else {})

    def _tensors(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return the tensors of a state, which are loaded in place.

        The settings of the optimizer are left out, because they come from the configuration."""
        return {**state, "optimizer": state["optimizer"]["state"]}


def _files(tensors: dict[str, Any]) -> dict[str, int]:
    """Return the number of the file of each tensor of a nested state, counted from 1.

    A file has at most `_FILE_BYTES` of a rank, unless a single tensor is larger."""
    files: dict[str, int] = {}
    number, size = 1, 0
    for name, tensor in _named_tensors(tensors):
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        if size and size + local.nbytes > _FILE_BYTES:
            number, size = number + 1, 0
        files[name], size = number, size + local.nbytes
    return files


def _named_tensors(state: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, tensor) of a nested state. A name joins the keys by dots, as torch's checkpoints do."""
    for key, value in state.items():
        if isinstance(value, dict):
            yield from _named_tensors(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _progress(state: Path) -> Progress:
    """Return the counters in the folder of a state. Raises `BadInput` for a folder that this release did not write."""
    if not (state / _PROGRESS).is_file():
        raise BadInput(f"{state.parent}: not a checkpoint of treeadv (no {_STATE}/{_PROGRESS})")
    for name in _PICKLED:
        if (state / name).exists() or (state / _TENSORS / name).exists():
            raise BadInput(
                f"{state / name}: a checkpoint of an earlier release, in a format that can run code; resume it with the"
                " release that wrote it, or start a new run with model.path of this folder"
            )
    try:
        progress = json.loads((state / _PROGRESS).read_bytes())
        return {name: int(progress[name]) for name in ("version", "steps")}
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise BadInput(f"{state / _PROGRESS}: not the progress of a trainer ({one_line(e)})") from e


@contextmanager
def _one_line(state: Path) -> Iterator[None]:
    """Convert the errors of the readers of torch and safetensors to `BadInput`."""
    try:
        yield
    except CheckpointException as e:
        cause = next((error for error, _ in e.failures.values()), e)
        raise BadInput(f"{state}: cannot be read ({one_line(cause)}); resume with the model of the run") from e
    except (SafetensorError, OSError, KeyError, RuntimeError, TypeError) as e:
        raise BadInput(f"{state}: cannot be read ({one_line(e)})") from e


@contextmanager
def _without_warning() -> Iterator[None]:
    """Silence torch's warning that no process group exists. One rank needs no process group."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _rank_and_world() -> tuple[int, int]:
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
