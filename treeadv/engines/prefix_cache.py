"""The cache of the keys and values of one forest. It holds every token once, and all branches share it.

Each computed token has a *slot*. Slots form a trie: the pair (slot of the previous token, token) maps to a slot. A
branch therefore finds the longest prefix that any branch of the forest has computed, and siblings with equal tokens
share slots. A mask selects the slots of a branch's path. A fork copies no keys and values.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

_ROOT = -1


class PrefixCache:
    """The slots of one forest. `keys[layer]` and `values[layer]` are [kv heads, capacity, head dim].

    The capacity doubles when all slots are in use."""

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
        """Return the slots of the longest prefix of `tokens` that has slots."""
        path: list[int] = []
        last = _ROOT
        for token in tokens:
            found = self._slot.get((last, token))
            if found is None:
                break
            path.append(last := found)
        return path

    def add(self, path: list[int], token: int) -> bool:
        """Append the slot of `token` to `path`. Returns whether the slot is new.

        Siblings with the same token share a slot.
        """
        slot = self._slot.setdefault((path[-1] if path else _ROOT, token), self.used)
        path.append(slot)
        if slot < self.used:
            return False
        self.used += 1
        return True

    def reserve(self) -> None:
        """Grow the arrays to hold all slots in use."""
        if self.used <= self.capacity:
            return
        capacity = max(self.used, 2 * self.capacity)
        for store in (self.keys, self.values):
            for layer, old in enumerate(store):
                new = torch.empty((old.shape[0], capacity, old.shape[2]), dtype=old.dtype)
                new[:, : old.shape[1]] = old
                store[layer] = new


class Reads:
    """The slots that one branch reads, as a row of an additive attention mask.

    The row is 0 at these slots, else -inf.
    """

    def __init__(self) -> None:
        self._row = torch.full((256,), float("-inf"))

    def add(self, slots: list[int]) -> None:
        """Add `slots` to the slots that the branch reads."""
        if slots and (last := max(slots)) >= len(self._row):
            grown = torch.full((2 * last,), float("-inf"))
            grown[: len(self._row)] = self._row
            self._row = grown
        if len(slots) == 1:
            self._row[slots[0]] = 0.0
        else:
            self._row[torch.tensor(slots, dtype=torch.long)] = 0.0

    def row(self, used: int) -> torch.Tensor:
        """Return the mask [used] over the first `used` slots."""
        if used > len(self._row):
            grown = torch.full((2 * used,), float("-inf"))
            grown[: len(self._row)] = self._row
            self._row = grown
        return self._row[:used]
