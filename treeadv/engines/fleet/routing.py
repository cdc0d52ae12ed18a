"""Assigns trees to servers by rendezvous hashing with bounded load, without I/O.

Rendezvous hashing is due to Thaler and Ravishankar (1998). A tree ranks all servers by a hash of (tree, server) and
takes the first server. If a server ends, only the trees of this server move. Bounded load is due to Mirrokni, Thorup
and Zadimoghaddam (2018). If a server has more than `bound` times the mean load, the tree takes the next server of its
ranking.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from treeadv.seeds import derive


class Routes:
    """The assignment of trees to the servers that hold their prefixes."""

    def __init__(self, bound: float = 1.25) -> None:
        self.bound = bound
        self._servers: dict[str, dict[str, str]] = {}  # forest -> tree -> server
        self._load: dict[str, int] = {}  # server -> trees

    def server_of(self, forest: str, tree: str, ready: Iterable[str], open_to_new: Iterable[str]) -> str:
        """Return the server of a tree: its current server if this server is `ready`, else a new server.

        The new server is the first in the tree's ranking that is in `open_to_new` and has room. `open_to_new` must not
        be empty.
        """
        servers = self._servers.setdefault(forest, {})
        candidates = set(open_to_new)
        kept = servers.get(tree)
        if kept is not None and kept in set(ready):
            return kept
        if kept is not None:
            self._drop(kept)
        most = math.ceil(self.bound * (sum(self._load.get(s, 0) for s in candidates) + 1) / len(candidates))
        ranked = sorted(candidates, key=lambda s: derive(forest, tree, s))
        chosen = next(s for s in ranked if self._load.get(s, 0) < most)
        servers[tree] = chosen
        self._load[chosen] = self._load.get(chosen, 0) + 1
        return chosen

    def release(self, forest: str) -> None:
        """Remove the trees of a complete forest from the load of their servers."""
        for server in self._servers.pop(forest, {}).values():
            self._drop(server)

    def loads(self) -> dict[str, int]:
        return {s: n for s, n in self._load.items() if n}

    def _drop(self, server: str) -> None:
        self._load[server] -= 1
