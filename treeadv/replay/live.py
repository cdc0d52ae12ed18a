"""The live forests of the queue, by id and by state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from treeadv.replay.records import Admitted, Reserved


class State(StrEnum):
    RESERVED = "reserved"
    READY = "ready"
    LEASED = "leased"
    TRAINED = "trained"
    DROPPED = "dropped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A live forest.

    `since` is the last acknowledged step at the reservation, `order` the position among the admitted forests, and
    `turn` the position among the forests that were leased before a resume, or None."""

    reserved: Reserved
    since: int = 0
    state: State = State.RESERVED
    admitted: Admitted | None = None
    order: int = -1
    turn: int | None = None

    @property
    def payload(self) -> Admitted:
        """Return the record of the admission. Raises AssertionError for a reserved forest, which has no payload."""
        assert self.admitted is not None, f"forest {self.reserved.forest_id} is reserved and not admitted"
        return self.admitted


class LiveForests(dict[str, Entry]):
    """The entries by forest id. It also keeps them by state, because a lease needs only the ready forests.

    Only `live[fid] = entry` and `del live[fid]` change it; other methods that change a dict would leave out the
    states."""

    def __init__(self, entries: Mapping[str, Entry] | None = None) -> None:
        super().__init__()
        self._by_state: dict[State, dict[str, Entry]] = {state: {} for state in State}
        for fid, entry in (entries or {}).items():
            self[fid] = entry

    def __setitem__(self, fid: str, entry: Entry) -> None:
        if (before := self.get(fid)) is not None and before.state is not entry.state:
            del self._by_state[before.state][fid]
        self._by_state[entry.state][fid] = entry
        super().__setitem__(fid, entry)

    def __delitem__(self, fid: str) -> None:
        del self._by_state[self[fid].state][fid]
        super().__delitem__(fid)

    def in_state(self, state: State) -> list[Entry]:
        """Return the entries in a state, in any order."""
        return list(self._by_state[state].values())
