"""Tests the rule `search`: forests grow in rounds, and a value estimate chooses the forks."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_sampler import PROBLEM, PROMPT, STOP, Scripted
from tests.test_wire import same
from treeadv.checks import check_run
from treeadv.config import SamplingConfig, parse
from treeadv.errors import BadInput
from treeadv.forest import Finish, Forest
from treeadv.sampling.growing import GrowingSegment, Place
from treeadv.sampling.request import GrowRequest
from treeadv.sampling.sampler import grow
from treeadv.sampling.search import Judge
from treeadv.sampling.search_rule import SearchRule


def searched(
    engine: Scripted,
    judge: Judge | None = None,
    seed: int = 0,
    stop: frozenset[int] = frozenset({STOP}),
    **options: Any,
) -> Forest:
    given = {"leaves": 8, "trees": 2, "max_tokens": 12, "min_gap": 2, "min_tail": 3, "max_depth": 3, "rule": "search"}
    given |= options
    sampling = SamplingConfig(**given)
    request = GrowRequest(forest_id="f", problem=PROBLEM, prompt=PROMPT, seed=seed)
    return asyncio.run(grow(engine, request, sampling, sampling.tau, stop, judge))


async def first_token_is_low(leaves: Sequence[np.ndarray]) -> list[float]:
    return [float(leaf[0] < 5) for leaf in leaves]


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32), leaves=st.integers(1, 12), trees=st.integers(1, 4), width=st.integers(1, 4),
    by=st.sampled_from(["uniform", "entropy", "ucb"]), depth=st.integers(0, 3), delay=st.integers(0, 99),
)  # fmt: skip
def test_search_keeps_the_guards_and_draws_no_token_twice(
    seed: int, leaves: int, trees: int, width: int, by: str, depth: int, delay: int
) -> None:
    options: dict[str, Any] = {
        "leaves": leaves, "trees": min(trees, leaves), "max_depth": depth, "rule_options": {"by": by, "width": width}
    }  # fmt: skip
    engine = Scripted()
    forest = searched(engine, first_token_is_low, seed, **options)
    assert forest.leaves == leaves and not forest.predictable and forest.rule == "search"
    assert forest.depth.max() <= depth
    inner = forest.arity > 0
    assert (forest.lengths[inner] >= 2).all() and (forest.arity[inner] == 2).all()
    assert all(12 - forest.offset[s] - forest.lengths[s] >= 3 for s in np.flatnonzero(inner))
    paths = [tuple(forest.leaf_tokens(i).tolist()) for i in range(leaves)]
    drawn = 0
    for prefix, _ in engine.requests:
        shared = prefix[len(PROMPT) :]
        assert any(path[: len(shared)] == shared for path in paths)
        drawn += len(shared)
    assert forest.tokens + drawn == sum(map(len, paths)), "each request adds what its prefix does not have"
    assert same(searched(Scripted(delay=delay), first_token_is_low, seed, **options), forest)


def test_search_by_entropy_forks_where_the_entropy_is() -> None:
    for seed in range(5):
        engine = Scripted(entropy=lambda path: float(len(path) == len(PROMPT) + 4))
        forest = searched(engine, None, seed, frozenset(), trees=4, max_depth=1)
        assert forest.lengths[forest.arity > 0].tolist() == [4] * 4


def test_ucb_without_exploration_forks_in_rewarded_trees_only() -> None:
    rule, seen = {"by": "ucb", "exploration": 0.0, "width": 1}, set()
    for seed in range(8):
        options = {"rule_options": rule, "max_depth": 9, "max_tokens": 40}
        forest = searched(Scripted(), first_token_is_low, seed, frozenset(), **options)
        low = {int(s): bool(forest.token[forest.start[s]] < 5) for s in np.flatnonzero(forest.parent < 0)}
        seen |= set(low.values())
        if True in low.values():
            assert all(low[s] for s in low if forest.arity[s]), "no fork in a tree without a reward"
    assert seen == {True, False}


def test_ucb_with_much_exploration_shares_leaves_evenly() -> None:
    rule = {"by": "ucb", "exploration": 100.0, "width": 1}
    options = {"rule_options": rule, "max_depth": 9, "max_tokens": 40}
    forest = searched(Scripted(), first_token_is_low, 1, frozenset(), **options)
    assert np.bincount(forest.tree[forest.leaf_segment]).tolist() == [4, 4]


def test_lost_branch_of_a_search_goes_on_or_is_aborted() -> None:
    again = searched(Scripted(fail=3), leaves=4)
    assert again.leaves == 4 and Finish.ABORT not in again.finish
    assert Finish.ABORT in searched(Scripted(fail=8), leaves=4, trees=1).finish


def test_ucb_without_rewards_is_refused_before_the_run(tiny_model: Path) -> None:
    with pytest.raises(BadInput, match="search reads rewards"):
        searched(Scripted(), None, rule_options={"by": "ucb"})
    tree = {
        "task": {"source": "reasoning-gym", "families": [{"name": "chain_sum"}]}, "model": {"path": str(tiny_model)},
        "sampling": {"rule": "search", "rule_options": {"by": "ucb"}},
    }  # fmt: skip
    with pytest.raises(BadInput, match="train with --local"):
        check_run(parse(tree, "test"), local=False)
    check_run(parse(tree, "test"), local=True)


# ---- rules from outside --------------------------------------------------------------------------
class Earliest(SearchRule):
    """A rule of a user: it forks at the first allowed token of the tree whose leaves have the lowest reward."""

    low_first: bool = False

    @property
    def needs_rewards(self) -> bool:
        return self.low_first

    def weights(self, roots: Sequence[GrowingSegment], places: Sequence[Place]) -> list[float]:
        rewards = {root.tree: sum(leaf.reward for leaf in root.leaves()) for root in roots}
        first = min(places, key=lambda p: (rewards[p.segment.tree] if self.low_first else 0.0, p.at))
        return [float(place is first) for place in places]


class NoPlace(SearchRule):
    """A rule with a fault: it gives no place a weight."""

    def weights(self, roots: Sequence[GrowingSegment], places: Sequence[Place]) -> list[float]:
        return [0.0] * len(places)


class Unfinished(SearchRule):
    """A rule with a fault: it does not define `weights`."""


async def first_tree_is_low(leaves: Sequence[np.ndarray]) -> list[float]:
    return [float(number > 0) for number in range(len(leaves))]


def test_search_rule_from_outside_chooses_the_forks() -> None:
    options = {"rule": f"{__name__}:Earliest", "rule_options": {"width": 1}}
    forest = searched(Scripted(), stop=frozenset(), **options, leaves=3, trees=1, max_depth=1)
    assert (forest.rule, forest.predictable, forest.leaves) == (options["rule"], False, 3)
    assert forest.lengths[forest.arity > 0].tolist() == [2], "the first token that min_gap=2 allows"


def test_search_rule_from_outside_gets_rewards() -> None:
    options = {"rule": f"{__name__}:Earliest", "leaves": 3, "max_depth": 1, "stop": frozenset()}
    low = {"low_first": True, "width": 1}
    forest = searched(Scripted(), first_tree_is_low, rule_options=low, **options)
    assert forest.arity[forest.parent < 0].tolist() == [2, 0]
    with pytest.raises(BadInput, match="Earliest reads rewards"):
        searched(Scripted(), None, rule_options=low, **options)
    assert searched(Scripted(), None, **options).leaves == 3, "without the option it needs no rewards"


def test_faults_of_a_search_rule_are_bad_input() -> None:
    with pytest.raises(BadInput, match="NoPlace: `weights` must return a number for each of"):
        searched(Scripted(), rule=f"{__name__}:NoPlace")
    with pytest.raises(BadInput, match="Unfinished: the class must define `weights`"):
        searched(Scripted(), rule=f"{__name__}:Unfinished")


# ---- not only language ---------------------------------------------------------------------------
@pytest.fixture(scope="module")
def lake() -> ModuleType:
    pytest.importorskip("gymnasium", reason="gymnasium is not installed")
    path = Path(__file__).parents[1] / "docs" / "examples" / "frozen_lake.py"
    assert len(path.read_text().splitlines()) < 150
    spec = importlib.util.spec_from_file_location("frozen_lake", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("rule", ["entropy", "search"])
def test_table_policy_learns_to_cross_the_lake(lake: ModuleType, rule: str) -> None:
    rewards = asyncio.run(lake.train(rule))
    assert rewards[0] < 0.3 and min(rewards[-3:]) > 0.8


def test_saved_states_are_those_of_played_actions(lake: ModuleType) -> None:
    """The engine saves the state before each action, and it restores the states of forks. The test plays the actions of
    each leaf from the start in a new environment. The states and the reward must be equal."""
    played = lake.Lake()
    sampling = SamplingConfig(leaves=16, trees=4, tau=1.0, max_tokens=8, temperature=1.0, min_gap=1)
    forest = asyncio.run(lake.play(played, sampling, 0))
    assert (forest.arity > 0).any()
    fresh = lake.Lake().env
    for leaf in range(forest.leaves):
        fresh.reset(seed=0)
        path: tuple[int, ...] = ()
        for action in forest.leaf_tokens(leaf).tolist():
            assert played.saved[path][0] == fresh.s
            _, reward, *_ = fresh.step(action)
            path = (*path, action)
        assert reward == forest.reward[leaf]
