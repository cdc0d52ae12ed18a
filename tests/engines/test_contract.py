"""Tests the contract of `Engine` with every engine."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from tests.engines.conftest import Run
from tests.engines.helpers import PROBLEM, PROMPT, Plain, branch, params, weights
from treeadv.config import SamplingConfig
from treeadv.engines.base import Engine
from treeadv.forest import Finish, Forest
from treeadv.sampling.request import GrowRequest
from treeadv.sampling.sampler import grow

EXACT = 1e-4  # nats; engines add float32 values in different orders


@pytest.fixture(scope="module")
def plain(tiny_model: Path) -> Plain:
    return Plain(tiny_model)


def forest_of(run: Run, engine: Engine, sampling: SamplingConfig, name: str = "f") -> Forest:
    request = GrowRequest(forest_id=name, problem=PROBLEM, prompt=PROMPT, seed=1)
    return run(grow(engine, request, sampling, 1.0, frozenset([0])))


def test_log_probs_and_entropies_match_a_plain_forward(run: Run, engine: Engine, plain: Plain) -> None:
    async def all_branches() -> list:
        return await asyncio.gather(*(branch(engine, PROMPT[: 4 + i], params(40, seed=i)) for i in range(6)))

    largest = [plain.differences(PROMPT[: 4 + i], draws) for i, draws in enumerate(run(all_branches()))]
    logprob, entropy = np.max(largest, axis=0)
    assert logprob < EXACT
    assert entropy < EXACT


def test_temperature_zero_follows_the_largest_logit(run: Run, engine: Engine, plain: Plain) -> None:
    draws = run(branch(engine, PROMPT, params(40, temperature=0.0)))
    logp = plain.logp(PROMPT, [d.token for d in draws], temperature=1.0)
    assert [d.token for d in draws] == logp.argmax(-1).tolist()


def test_every_leaf_of_a_greedy_forest_is_the_greedy_chain(run: Run, engine: Engine) -> None:
    """Siblings start with the prefix of the fork. If every step has one possible token, every leaf is the same
    chain."""
    chain = [d.token for d in run(branch(engine, PROMPT, params(32, stop=frozenset([0]), temperature=0.0)))]
    sampling = SamplingConfig(
        leaves=8, trees=2, rule="fixed", rule_options={"gap": 6}, max_tokens=32, temperature=1e-4, min_tail=1
    )
    forest = forest_of(run, engine, sampling)
    assert forest.leaves == 8
    assert forest.segments > 8
    for leaf in range(forest.leaves):
        assert forest.leaf_tokens(leaf).tolist() == chain


def test_branch_ends_with_its_first_stop_token(run: Run, engine: Engine) -> None:
    stop = frozenset(range(2, 30))
    for seed in range(6):
        draws = run(branch(engine, PROMPT, params(200, stop=stop, temperature=2.0, seed=seed)))
        assert [d.token in stop for d in draws] == [False] * (len(draws) - 1) + [True]
        assert [d.finish for d in draws] == [None] * (len(draws) - 1) + [Finish.STOP]


def test_only_the_given_stop_tokens_end_a_branch(run: Run, engine: Engine) -> None:
    """The end token of the model (0) ends no branch unless it is a given stop token."""
    drawn = [run(branch(engine, PROMPT, params(100, temperature=8.0, seed=s))) for s in range(8)]
    assert all(len(d) == 100 and d[-1].finish is Finish.LENGTH for d in drawn)
    assert any(d.token == 0 for draws in drawn for d in draws)


def test_branch_has_at_most_max_tokens(run: Run, engine: Engine) -> None:
    for n in (1, 7, 8, 9, 17):
        draws = run(branch(engine, PROMPT, params(n)))
        assert len(draws) == n
        assert draws[-1].finish is Finish.LENGTH


def test_branch_without_a_consumer_stops_being_decoded(run: Run, engine: Engine) -> None:
    async def leave() -> None:
        stream = engine.generate(PROMPT, params(1500), "left", "0")
        async for _ in stream:
            break
        await stream.aclose()  # type: ignore[attr-defined]

    run(leave())
    before = engine.stats()
    draws = run(branch(engine, PROMPT, params(10)))
    after = engine.stats()
    assert len(draws) == 10
    assert after.running == 0
    assert after.decoded_tokens - before.decoded_tokens <= 10 + 1  # one step may be in progress


def test_drawn_prefix_comes_from_the_cache(run: Run, engine: Engine) -> None:
    """At least 99 % of the prefix comes from the cache. The last token does not count, because its logits are
    needed."""
    draws = run(branch(engine, PROMPT, params(240), "reuse"))
    for cut in (240, 100, 37):
        prefix = np.append(PROMPT, [d.token for d in draws[:cut]])
        before = engine.stats()
        run(branch(engine, prefix, params(1), "reuse"))
        after = engine.stats()
        assert after.prompt_tokens - before.prompt_tokens == len(prefix)
        assert after.cached_tokens - before.cached_tokens >= 0.99 * (len(prefix) - 1)


def test_branch_adds_to_token_counts_and_busy_time(run: Run, engine: Engine) -> None:
    before = engine.stats()
    run(branch(engine, PROMPT[:9], params(12)))
    after = engine.stats()
    assert after.decoded_tokens - before.decoded_tokens == 12
    assert after.prompt_tokens - before.prompt_tokens >= 9
    assert after.busy_seconds > before.busy_seconds


def test_update_during_a_branch_loses_no_token_and_labels_all(run: Run, engine: Engine, tiny_model: Path) -> None:
    """The old weights draw the tokens before the update. The new weights compute the prefix again and draw the tokens
    after the update."""
    old, new = weights(tiny_model), weights(tiny_model, 1.1)
    start = engine.version

    async def with_update() -> list:
        draws, update = [], None
        async for draw in engine.generate(PROMPT, params(300), "versions", "0"):
            draws.append(draw)
            if len(draws) == 20:
                update = asyncio.create_task(engine.update_weights(start + 1, new))
        assert update is not None
        assert await update > 0
        return draws

    draws = run(with_update())
    versions = [d.version for d in draws]
    assert len(draws) == 300
    assert sorted(versions) == versions
    assert set(versions) == {start, start + 1}
    turn = versions.index(start + 1)
    assert max(Plain(tiny_model, old).differences(PROMPT, draws[:turn])) < EXACT
    assert max(Plain(tiny_model, new).differences(PROMPT, draws, skip=turn)) < EXACT
    run(engine.update_weights(start + 2, old))
    assert max(Plain(tiny_model, old).differences(PROMPT, run(branch(engine, PROMPT, params(20))))) < EXACT


def test_older_version_is_refused(run: Run, engine: Engine, tiny_model: Path) -> None:
    run(engine.update_weights(engine.version + 1, weights(tiny_model)))
    current = engine.version
    with pytest.raises(ValueError, match=f"{current - 1} is older than the engine's {current}"):
        run(engine.update_weights(current - 1, weights(tiny_model, 1.1)))
    assert engine.version == current
    assert {d.version for d in run(branch(engine, PROMPT, params(3)))} == {current}
