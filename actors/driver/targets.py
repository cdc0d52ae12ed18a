"""The file targets.json with the address of every /metrics of a run. Prometheus discovers the addresses in this
file."""

from __future__ import annotations

from collections import Counter

from treeadv.metrics import Role
from treeadv.storage.run_folder import RunFolder


class Targets:
    """The actors that are up, with their addresses. Once the queue is up, each change rewrites targets.json in
    Prometheus' file_sd form."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._entries: dict[str, tuple[Role, str]] = {}  # name -> role, host:port

    def add(self, role: Role, name: str, address: str) -> None:
        self._entries[name] = role, address
        self._write()

    def remove(self, name: str) -> None:
        del self._entries[name]
        self._write()

    def count(self) -> Counter[Role]:
        """Return the number of actors that are up, by role."""
        return Counter(role for role, _ in self._entries.values())

    def _write(self) -> None:
        if not self.count()["queue"]:  # until the queue is up, another driver may own the run
            return
        run = self._folder.path.name
        self._folder.write(
            "targets.json",
            [
                {"targets": [address], "labels": {"role": role, "instance": name, "run": run}}
                for name, (role, address) in self._entries.items()
            ],
        )
