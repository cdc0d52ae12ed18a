"""Which server grows which tree: rendezvous hashing with bounded load. Pure; the servers are names.

Rendezvous hashing (Thaler and Ravishankar, 1998): each tree ranks all servers by a hash of the pair and takes the
first, so that when a server goes only its own trees move. Bounded load (Mirrokni, Thorup and Zadimoghaddam, 2018): a
server that holds more than `bound` times the mean is passed over for the next in the tree's rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from hashlib import blake2b


class Routes:
    """Trees and the servers that hold their prefixes."""

    def __init__(self, bound: float = 1.25) -> None:
        self.bound = bound
        self._homes: dict[str, dict[str, str]] = {}  # forest -> tree -> server
        self._load: dict[str, int] = {}  # server -> trees

    def home(self, forest: str, tree: str, ready: Iterable[str], open_to_new: Iterable[str]) -> str:
        """The server of a tree: the one that has it while that is `ready`, else the first in its rank, of those
        `open_to_new`, with room. `open_to_new` is not empty.
        """
        homes = self._homes.setdefault(forest, {})
        candidates = set(open_to_new)
        kept = homes.get(tree)
        if kept is not None and kept in set(ready):
            return kept
        if kept is not None:
            self._drop(kept)
        most = math.ceil(self.bound * (sum(self._load.get(s, 0) for s in candidates) + 1) / len(candidates))
        ranked = sorted(candidates, key=lambda s: _rank(forest, tree, s))
        chosen = next(s for s in ranked if self._load.get(s, 0) < most)
        homes[tree] = chosen
        self._load[chosen] = self._load.get(chosen, 0) + 1
        return chosen

    def release(self, forest: str) -> None:
        """The forest is complete: its trees load their servers no longer."""
        for server in self._homes.pop(forest, {}).values():
            self._drop(server)

    def loads(self) -> dict[str, int]:
        return {s: n for s, n in self._load.items() if n}

    def _drop(self, server: str) -> None:
        self._load[server] -= 1


def _rank(forest: str, tree: str, server: str) -> bytes:
    return blake2b(f"{forest}\x1f{tree}\x1f{server}".encode(), digest_size=8).digest()
