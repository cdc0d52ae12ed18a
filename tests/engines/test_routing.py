"""Tests rendezvous hashing with bounded load, without servers."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from treeadv.engines.fleet.routing import Routes

names = st.lists(st.text("abcdef", min_size=1, max_size=4), min_size=1, max_size=6, unique=True)
trees = st.lists(st.tuples(st.text("xyz", max_size=3), st.text("0123456789", max_size=2)), max_size=60, unique=True)


def place(routes: Routes, placed: list[tuple[str, str]], servers: list[str]) -> dict[tuple[str, str], str]:
    return {t: routes.server_of(*t, servers, servers) for t in placed}


@given(names, trees)
def test_tree_stays_on_the_server_with_its_prefix(servers: list[str], placed: list[tuple[str, str]]) -> None:
    routes = Routes()
    assert place(routes, placed, servers) == place(routes, placed[::-1], servers)


@given(names, trees)
def test_no_server_exceeds_the_load_bound(servers: list[str], placed: list[tuple[str, str]]) -> None:
    routes = Routes(bound=1.25)
    for i, t in enumerate(placed, start=1):
        routes.server_of(*t, servers, servers)
        assert max(routes.loads().values()) <= math.ceil(1.25 * i / len(servers))


@given(names.filter(lambda n: len(n) > 1), trees)
def test_death_of_a_server_moves_only_its_own_trees(servers: list[str], placed: list[tuple[str, str]]) -> None:
    routes = Routes()
    before = place(routes, placed, servers)
    after = place(routes, placed, servers[1:])
    assert all(after[t] == before[t] for t in placed if before[t] != servers[0])
    assert servers[0] not in after.values()
    assert sum(routes.loads().values()) == len(placed)


@given(names, trees)
def test_released_forest_adds_no_load(servers: list[str], placed: list[tuple[str, str]]) -> None:
    routes = Routes()
    place(routes, placed, servers)
    for forest in {f for f, _ in placed}:
        routes.release(forest)
    assert routes.loads() == {}


def test_routing_without_load_depends_only_on_the_hash() -> None:
    servers = ["a", "b", "c"]
    chosen = [Routes().server_of("f", str(i), servers, servers) for i in range(300)]
    assert chosen == [Routes().server_of("f", str(i), servers[::-1], servers[::-1]) for i in range(300)]
    assert all(60 < chosen.count(s) < 140 for s in servers)


def test_tree_does_not_move_to_a_server_closed_to_new_trees() -> None:
    routes = Routes()
    assert all(routes.server_of("f", str(i), ["old", "new"], ["new"]) == "new" for i in range(20))
