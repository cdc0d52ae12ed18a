"""Keys and values of one forest, every token once, shared by all its branches.

A token that was computed has a *slot*. Slots form a trie (slot of the token before, token) -> slot, so a branch finds
the longest prefix that any branch of the forest has computed, however it came to be, and equal draws are kept once. A
branch reads the slots of its own path through a mask; nothing is copied at a fork.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

_ROOT = -1


class PrefixCache:
    """Slots of one forest: `keys[layer]`, `values[layer]` are [kv heads, capacity, head dim], grown by doubling."""

    def __init__(self, layers: int, kv_heads: int, head_dim: int, dtype: torch.dtype, capacity: int = 256) -> None:
        shape = (kv_heads, capacity, head_dim)
        self.keys = [torch.empty(shape, dtype=dtype) for _ in range(layers)]
        self.values = [torch.empty(shape, dtype=dtype) for _ in range(layers)]
        self.used = 0
        self._slot: dict[tuple[int, int], int] = {}

    @property
    def capacity(self) -> int:
        return self.keys[0].shape[1]

    def match(self, tokens: Sequence[int]) -> list[int]:
        """Slots of the longest prefix of `tokens` that is here."""
        path: list[int] = []
        at = _ROOT
        for token in tokens:
            found = self._slot.get((at, token))
            if found is None:
                break
            path.append(at := found)
        return path

    def extend(self, path: list[int], tokens: Sequence[int]) -> tuple[list[int], set[int]]:
        """Slots for `tokens` after `path`, and which of them are new: where a sibling drew the same token, both use its
        slot.
        """
        self._reserve(self.used + len(tokens))
        at = path[-1] if path else _ROOT
        slots, new = [], set()
        for token in tokens:
            slot = self._slot.setdefault((at, token), self.used)
            if slot == self.used:
                self.used += 1
                new.add(slot)
            slots.append(at := slot)
        return slots, new

    def _reserve(self, size: int) -> None:
        if size <= self.capacity:
            return
        capacity = max(size, 2 * self.capacity)
        for store in (self.keys, self.values):
            for layer, old in enumerate(store):
                new = torch.empty((old.shape[0], capacity, old.shape[2]), dtype=old.dtype)
                new[:, : self.used] = old[:, : self.used]
                store[layer] = new
