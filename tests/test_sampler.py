"""Tests the growth of forests with a scripted engine, whose draws depend only on the path and the seed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_wire import same
from treeadv.config import SamplingConfig
from treeadv.data.problems import Problem
from treeadv.engines.base import Draw, EngineLost, Params
from treeadv.errors import BadInput
from treeadv.forest import Finish, Forest
from treeadv.sampling.forking import Forking, split
from treeadv.sampling.request import GrowRequest
from treeadv.sampling.rules import RULES, ForkRule, Prefix, build_rule
from treeadv.sampling.sampler import grow
from treeadv.seeds import derive, uniform

STOP = 9
PROMPT = np.array([1, 2, 3], np.int32)
PROBLEM = Problem(id="p", problem="", answer="1", verifier="math", meta="")


class Scripted:
    """An engine with a synthetic policy. A hash of the path determines the entropy and the draw. `delay` changes the
    order in which the engine serves branches."""

    version = 0
    longest = 1000

    def __init__(
        self, entropy: Callable[[tuple[int, ...]], float] | None = None, delay: int | None = None, fail: int = 0
    ) -> None:
        self.entropy = entropy or (lambda path: 2.0 * uniform("entropy", *path))
        self.delay = random.Random(delay) if delay is not None else None
        self.fail = fail  # requests that are lost after two tokens
        self.requests: list[tuple[tuple[int, ...], Params]] = []
        self.released: list[str] = []

    async def generate(self, prefix: np.ndarray, params: Params, namespace: str, tree: str) -> AsyncIterator[Draw]:
        self.requests.append((tuple(prefix.tolist()), params))
        path = list(prefix.tolist())
        rng = np.random.Generator(np.random.Philox(params.seed))
        for n in range(params.max_tokens):
            if self.fail and n == 2:
                self.fail -= 1
                raise EngineLost("scripted loss")
            for _ in range(self.delay.randrange(5) if self.delay else 0):
                await asyncio.sleep(0)
            entropy = self.entropy(tuple(path))
            token = int(rng.integers(0, 10))
            path.append(token)
            finish = Finish.STOP if token in params.stop else Finish.LENGTH if n + 1 == params.max_tokens else None
            yield Draw(token=token, logprob=-float(rng.random()), entropy=entropy, version=0, finish=finish)
            if finish is not None:
                return

    async def release(self, namespace: str) -> None:
        self.released.append(namespace)


def forest(
    engine: Scripted, s: SamplingConfig, tau: float = 1.0, seed: int = 0, stop: frozenset[int] = frozenset({STOP})
) -> Forest:
    return asyncio.run(
        grow(engine, GrowRequest(forest_id="f", problem=PROBLEM, prompt=PROMPT, seed=seed), s, tau, stop)
    )


OPTIONS = {
    "fixed": st.fixed_dictionaries({"gap": st.integers(1, 5)}),
    "random": st.fixed_dictionaries({"probability": st.floats(0, 1)}),
}


@st.composite
def sampling_configs(draw: st.DrawFn) -> SamplingConfig:
    """Generate sampling settings with every rule of the registry."""
    rule = draw(st.sampled_from(sorted(RULES)))
    return draw(
        st.builds(
            SamplingConfig,
            leaves=st.integers(2, 12),
            rule=st.just(rule),
            rule_options=OPTIONS.get(rule, st.just({})),
            arity=st.integers(2, 3),
            min_gap=st.integers(1, 4),
            max_depth=st.integers(0, 4),
            min_tail=st.integers(1, 4),
            topup=st.booleans(),
            max_tokens=st.integers(2, 20),
        )
    )


SETTINGS = sampling_configs()


@settings(max_examples=150, deadline=None)
@given(SETTINGS, st.integers(0, 1000))
def test_forest_keeps_its_budget_and_every_guard(s: SamplingConfig, seed: int):
    engine = Scripted()
    f = forest(engine, s, seed=seed)
    assert f.leaves == s.leaves if s.topup else s.roots <= f.leaves <= s.leaves
    lengths = f.offset + f.lengths
    for x in range(f.segments):
        assert f.leaf_count[x] <= f.budget[x]
        if f.arity[x]:
            assert 2 <= f.arity[x] <= s.arity and f.arity[x] <= f.budget[x] and f.lengths[x] >= s.min_gap
            assert f.depth[x] < s.max_depth and s.max_tokens - lengths[x] >= s.min_tail
            if (
                s.rule != "search"
            ):  # the rule search forks after the draws, and distributes the budget in rounds (tests/test_search.py)
                assert split(int(f.budget[x]), s.arity) == [int(f.budget[c]) for c in f.children[x]]
                assert f.arity[x] == s.arity
            if s.rule == "entropy":  # every token of a child's start was drawn above the threshold
                assert (f.entropy[f.start[list(f.children[x])]] > 1.0).all()
    assert (lengths[f.leaf_segment] <= s.max_tokens).all()
    assert f.predictable == (s.rule not in ("surprisal", "search")) and engine.released == ["f"]


@settings(max_examples=40, deadline=None)
@given(SETTINGS, st.integers(0, 100), st.integers(0, 100))
def test_same_seed_grows_the_same_forest_in_any_schedule(s: SamplingConfig, seed: int, delay: int):
    assert same(forest(Scripted(), s, seed=seed), forest(Scripted(delay=delay), s, seed=seed))


def test_another_seed_grows_another_forest():
    s = SamplingConfig(leaves=8)
    assert not same(forest(Scripted(), s, seed=1), forest(Scripted(), s, seed=2))


@settings(max_examples=60, deadline=None)
@given(SETTINGS, st.integers(0, 100))
def test_no_token_is_generated_twice(s: SamplingConfig, seed: int):
    """The tokens that the engine drew in all requests are exactly the tokens of the forest."""
    engine = Scripted()
    drawn = 0
    plain = engine.generate

    async def counting(*args):
        nonlocal drawn
        async for d in plain(*args):
            drawn += 1
            yield d

    engine.generate = counting
    f = forest(engine, s, seed=seed)
    assert drawn == f.tokens
    assert len(engine.requests) == f.leaves  # each leaf has one request, because the first child continues the chain


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 15), st.sampled_from(["entropy", "fixed", "random", "none"]))
def test_predictable_rule_does_not_depend_on_later_tokens(seed: int, cut: int, rule: str):
    """The forks up to a position stay the same when all later tokens differ."""
    s = SamplingConfig(leaves=4, trees=1, rule=rule, arity=2, min_gap=1, max_tokens=20, max_depth=3, topup=False)

    class OtherFuture(Scripted):
        async def generate(self, prefix, params, namespace, tree):
            path = list(prefix.tolist())
            async for d in super().generate(prefix, params, namespace, tree):
                if len(path) - len(PROMPT) >= cut:
                    d = Draw(
                        token=(d.token + 1) % 9,
                        logprob=d.logprob * 0.5,
                        entropy=2.0 - d.entropy,
                        version=d.version,
                        finish=d.finish,
                    )
                path.append(d.token)
                yield d

    a, b = forest(Scripted(), s, seed=seed), forest(OtherFuture(), s, seed=seed)

    def forks_before(f: Forest) -> set[tuple[int, ...]]:
        out = set()
        for x in np.flatnonzero(f.arity > 0):
            path = np.concatenate([f.token[f.start[y] : f.start[y + 1]] for y in f.path(int(x))])
            if len(path) < cut:
                out.add(tuple(path.tolist()))
        return out

    assert forks_before(a) == forks_before(b)


def forks(s: SamplingConfig, logprob: float, tau: float = 1.0) -> bool:
    return Forking(s, tau).forks(entropy=0.1, logprob=logprob, budget=4, gap=5, depth=0, position=5, seed=0)


def test_surprisal_rule_declares_that_it_reads_the_token():
    s = SamplingConfig(rule="surprisal")
    assert forks(s, -2.0) and not forks(s, -0.5)
    assert build_rule("surprisal", {}).predictable is False
    assert forks(SamplingConfig(rule="entropy"), -2.0) == forks(SamplingConfig(rule="entropy"), -0.5)


class ReadsTheToken(ForkRule):
    predictable = True

    def fires(self, prefix: Prefix) -> bool:
        return prefix.logprob < -1.0


class ReadsTau(ForkRule):
    predictable = True

    def fires(self, prefix: Prefix) -> bool:
        return prefix.entropy > prefix.tau


class ForgetsPredictable(ForkRule):
    def fires(self, prefix: Prefix) -> bool:
        return True


class ForgetsFires(ForkRule):
    predictable = True


class EvenPositions(ForkRule):
    predictable = True
    uses_threshold = True
    from_position: int = 2

    def fires(self, prefix: Prefix) -> bool:
        return prefix.position >= self.from_position and prefix.position % 2 == 0


@pytest.mark.parametrize("rule", ["ReadsTheToken", "ReadsTau"])
def test_rule_cannot_read_what_it_does_not_declare(rule: str):
    with pytest.raises(TypeError):
        forks(SamplingConfig(rule=f"{__name__}:{rule}"), -2.0)


@pytest.mark.parametrize(
    ("rule", "options", "reason"),
    [
        ("entropi", {}, "sampling.rule=entropi is unknown, did you mean entropy"),
        ("no_such_module:Rule", {}, "module no_such_module cannot be imported"),
        (f"{__name__}:NoSuchRule", {}, "has no NoSuchRule"),
        (f"{__name__}:PROMPT", {}, "not a subclass of treeadv.sampling.rules.ForkRule"),
        (f"{__name__}:ForgetsPredictable", {}, "must set `predictable`"),
        (f"{__name__}:ForgetsFires", {}, "must define `fires`"),
        ("fixed", {"gaps": 3}, r"sampling.rule_options of rule fixed: unknown key gaps \(options: gap\)"),
        ("fixed", {"gap": 0}, "gap: Input should be greater"),
        ("entropy", {"gap": 3}, r"\(options: none\)"),
    ],
)
def test_bad_rule_is_refused_before_anything_is_drawn(rule: str, options: dict, reason: str):
    engine = Scripted()
    with pytest.raises(BadInput, match=reason):
        forest(engine, SamplingConfig(rule=rule, rule_options=options))
    assert engine.requests == []


def test_rule_of_another_module_is_recorded_with_its_tau():
    name = f"{__name__}:EvenPositions"
    f = forest(Scripted(), SamplingConfig(leaves=4, rule=name, rule_options={"from_position": 4}), tau=0.7)
    assert (f.rule, f.predictable, f.tau) == (name, True, 0.7)
    forked = np.flatnonzero(f.arity)
    assert len(forked) and all((f.offset + f.lengths)[x] % 2 == 0 and (f.offset + f.lengths)[x] >= 4 for x in forked)


def test_every_rule_records_tau_exactly_when_it_reads_it():
    for name in RULES:
        f = forest(Scripted(), SamplingConfig(leaves=4, rule=name), tau=0.5)
        assert np.isnan(f.tau) != build_rule(name, {}).uses_threshold


def test_flat_rollouts_all_start_at_once():
    class Blocking(Scripted):
        """An engine that draws nothing until the number of waiting requests equals the number of leaves."""

        async def generate(self, prefix, params, namespace, tree):
            self.requests.append((tuple(prefix.tolist()), params))
            while len(self.requests) < 16:
                await asyncio.sleep(0)
            yield Draw(token=1, logprob=-0.1, entropy=0.5, version=0, finish=Finish.STOP)

    f = asyncio.run(
        asyncio.wait_for(
            grow(
                Blocking(),
                GrowRequest(forest_id="f", problem=PROBLEM, prompt=PROMPT, seed=0),
                SamplingConfig(leaves=16, rule="none"),
                1.0,
                frozenset(),
            ),
            5,
        )
    )
    assert f.leaves == f.trees == 16


def test_unused_budget_starts_once_no_fork_is_possible():
    """After a fork at the depth limit, the remaining budget of a segment starts new roots while the segment still
    grows."""
    s = SamplingConfig(
        leaves=8, trees=1, rule="fixed", rule_options={"gap": 2}, min_gap=1, max_depth=1, min_tail=1, max_tokens=12
    )
    running = [0, 0]

    class Counts(Scripted):
        async def generate(self, prefix, params, namespace, tree):
            running[0] += 1
            running[1] = max(running)
            async for d in super().generate(prefix, params, namespace, tree):
                yield d
                await asyncio.sleep(0)
            running[0] -= 1

    f = forest(Counts(delay=1), s, stop=frozenset())
    assert f.leaves == 8
    assert running[1] == 8


def test_lost_branch_continues_from_its_tokens():
    s = SamplingConfig(leaves=2, trees=1, rule="none", max_tokens=6, topup=False)
    engine = Scripted(fail=1)
    f = forest(engine, s)
    assert f.finish[0] != Finish.ABORT
    first, again = engine.requests
    assert (
        again[0] == first[0] + tuple(f.token[:2].tolist())
        and again[1].max_tokens == 4
        and again[1].seed != first[1].seed
    )


def test_branch_that_is_lost_at_every_retry_is_aborted():
    class LosesTree0(Scripted):
        async def generate(self, prefix, params, namespace, tree):
            drawn = 0
            async for d in super().generate(prefix, params, namespace, tree):
                if tree == "0" and drawn == 2:
                    raise EngineLost("tree 0 is lost")
                yield d
                drawn += 1

    f = forest(
        LosesTree0(), SamplingConfig(leaves=2, trees=2, rule="none", max_tokens=40, topup=False), stop=frozenset()
    )
    assert f.finish[0] == Finish.ABORT and f.finish[1] != Finish.ABORT
    assert f.lengths[0] == 2 * 4  # two tokens of each attempt are kept


def test_sibling_without_a_token_counts_in_the_arity():
    s = SamplingConfig(
        leaves=2, trees=1, rule="fixed", rule_options={"gap": 3}, arity=2, max_tokens=12, min_gap=1, topup=False
    )

    class Deaf(Scripted):
        async def generate(self, prefix, params, namespace, tree):
            if len(prefix) > len(PROMPT):
                raise EngineLost("deaf to siblings")
            for n in range(params.max_tokens):
                yield Draw(
                    token=n,
                    logprob=-0.1,
                    entropy=0.5,
                    version=0,
                    finish=Finish.LENGTH if n + 1 == params.max_tokens else None,
                )

    f = forest(Deaf(), s)
    assert f.arity.tolist() == [2, 0] and f.leaves == 1 and f.finish.tolist() == [Finish.LENGTH]


def test_forest_without_any_token_fails_with_the_cause():
    class Dead(Scripted):
        async def generate(self, prefix, params, namespace, tree):
            raise EngineLost("the server is gone")
            yield

    with pytest.raises(EngineLost, match="the server is gone"):
        forest(Dead(), SamplingConfig(leaves=4))


@given(st.integers(1, 64), st.integers(2, 5))
def test_split_gives_the_whole_budget_and_is_even(budget: int, arity: int):
    parts = split(budget, arity)
    assert sum(parts) == budget and max(parts) - min(parts) <= 1 and parts == sorted(parts, reverse=True)


def test_derived_numbers_depend_on_every_name():
    assert derive(1, "a", 2) != derive(1, "a", 3) != derive(2, "a", 3)
    assert derive("ab", "c") != derive("a", "bc")
    u = [uniform("u", i) for i in range(4000)]
    assert all(0 <= x < 1 for x in u) and abs(np.mean(u) - 0.5) < 0.02
