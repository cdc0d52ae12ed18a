"""Tests that the live forests of the queue are found by their state."""

from __future__ import annotations

import copy

from hypothesis import given
from hypothesis import strategies as st

from treeadv.replay.live import Entry, LiveForests, State
from treeadv.replay.records import Reserved

CHANGES = st.lists(st.tuples(st.integers(0, 5), st.one_of(st.none(), st.sampled_from(list(State)))), max_size=40)


def entry(n: int, state: State) -> Entry:
    reserved = Reserved(
        forest_id=f"r0-{n:06d}-0", draw=n, attempt=0, failures=0, worker="w", request="", prompt_id=f"p{n}"
    )
    return Entry(reserved=reserved, state=state)


@given(CHANGES)
def test_in_state_equals_a_search_of_all_entries(changes: list[tuple[int, State | None]]) -> None:
    """A change sets the state of forest n, or removes the forest (None)."""
    live, plain = LiveForests(), {}
    for n, state in changes:
        fid = f"r0-{n:06d}-0"
        if state is not None:
            live[fid] = plain[fid] = entry(n, state)
        elif fid in plain:
            del live[fid], plain[fid]
    assert live == plain
    for some in (live, LiveForests(plain), copy.deepcopy(live)):
        for state in State:
            found = sorted(e.reserved.draw for e in some.in_state(state))
            assert found == sorted(e.reserved.draw for e in plain.values() if e.state is state)
