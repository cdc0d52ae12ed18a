"""The form of published weights in Ray's object store.

Ray writes a numpy array with one copy, and a reader maps it without a copy. It pickles a torch tensor, which takes ten
times as long. numpy has no bfloat16, so a tensor of this dtype is sent as the array of its bits."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from treeadv.engines.base import Weights

if TYPE_CHECKING:  # a process that imports this module but computes no model needs no torch
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightBucket:
    """A part of the weights of a model, by their name in the model folder.

    `arrays` holds bits for the names in `bfloat16`, else values."""

    arrays: dict[str, np.ndarray]
    bfloat16: frozenset[str]

    @classmethod
    def of(cls, weights: Weights) -> WeightBucket:
        """Return the bucket of tensors on the CPU. It shares their memory."""
        import torch

        tensors = {name: torch.as_tensor(w) for name, w in weights.items()}
        bits = frozenset(name for name, t in tensors.items() if t.dtype == torch.bfloat16)
        return cls(
            arrays={n: (t.view(torch.int16) if n in bits else t).numpy() for n, t in tensors.items()}, bfloat16=bits
        )

    @property
    def size(self) -> int:
        """Return the number of bytes of the weights."""
        return sum(a.nbytes for a in self.arrays.values())

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors by name. They share the memory of the arrays, which may be read-only."""
        import torch

        with warnings.catch_warnings():  # torch warns of read-only arrays; nothing writes to weights that were sent
            warnings.filterwarnings("ignore", message=".*not writable.*")
            tensors = {name: torch.from_numpy(array) for name, array in self.arrays.items()}
        return {name: t.view(torch.bfloat16) if name in self.bfloat16 else t for name, t in tensors.items()}
