"""Compares the embedded engine with transformers."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from tests.engines.helpers import PROBLEM
from treeadv.config import SamplingConfig
from treeadv.engines import packing
from treeadv.engines.base import EngineLost, Params
from treeadv.engines.drawing import draw_rows
from treeadv.engines.embedded import EmbeddedEngine
from treeadv.engines.prefix_cache import PrefixCache
from treeadv.forest import Finish
from treeadv.sampling.request import GrowRequest
from treeadv.sampling.sampler import grow

PROMPTS = [np.array(p, np.int32) for p in ([5, 9, 30, 11], [7, 7, 7], [40, 41, 42, 43, 44, 45, 46, 47, 48])]


def params(seed: int = 0, temperature: float = 1.0, max_tokens: int = 12, stop: frozenset[int] = frozenset()) -> Params:
    return Params(max_tokens=max_tokens, temperature=temperature, stop=stop, seed=seed)


async def collect(engine, prefix, p, namespace="n"):
    return [d async for d in engine.generate(prefix, p, namespace, "0")]


def drawn(model_dir, jobs, rows=48):
    """Run (prefix, params, namespace) jobs concurrently. Returns their draws and the statistics of the engine."""

    async def run():
        engine = EmbeddedEngine(model_dir, rows=rows)
        try:
            return await asyncio.gather(*(collect(engine, *job) for job in jobs)), engine.stats()
        finally:
            await engine.close()

    return asyncio.run(run())


def plain(model_dir, temperature=1.0):
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()

    def logp(ids):
        with torch.no_grad():
            return torch.log_softmax(model(torch.tensor([ids])).logits[0] / temperature, -1)

    return model, logp


@pytest.fixture(scope="session", params=["llama", "qwen2", "qwen3"])
def model_dir(request, tmp_path_factory):
    torch.manual_seed(1)
    shape = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "eos_token_id": 0,
        "pad_token_id": 1,
        "bos_token_id": None,
    }
    config = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}[request.param](**shape)
    folder = tmp_path_factory.mktemp(request.param)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(20)
    model.save_pretrained(folder)
    return folder


def test_greedy_output_equals_generate(model_dir):
    model, _ = plain(model_dir)
    got, _ = drawn(model_dir, [(p, params(temperature=0.0, max_tokens=20), f"n{i}") for i, p in enumerate(PROMPTS)])
    for prompt, draws in zip(PROMPTS, got, strict=True):
        want = model.generate(
            torch.tensor(prompt.tolist())[None], max_new_tokens=20, do_sample=False, eos_token_id=None
        )
        assert [d.token for d in draws] == want[0, len(prompt) :].tolist()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_and_entropies_equal_a_plain_forward(model_dir, temperature):
    _, logp = plain(model_dir, temperature)
    got, _ = drawn(model_dir, [(p, params(i, temperature), f"n{i}") for i, p in enumerate(PROMPTS)])
    for prompt, draws in zip(PROMPTS, got, strict=True):
        tokens = [d.token for d in draws]
        want = logp(prompt.tolist() + tokens)[len(prompt) - 1 : -1]
        assert np.allclose([d.logprob for d in draws], want[range(len(tokens)), tokens], atol=1e-4)
        assert np.allclose([d.entropy for d in draws], -(want.exp() * want).sum(-1), atol=1e-4)


def test_drawn_tokens_follow_the_distribution(tiny_model):
    """A chi-square test compares 4,000 first tokens, each with its own seed, with the softmax of a plain forward."""
    _, logp = plain(tiny_model, 0.7)
    prompt = PROMPTS[0]
    want = logp(prompt.tolist())[-1].exp().double().numpy()
    got, _ = drawn(tiny_model, [(prompt, params(seed, 0.7, 1), "n") for seed in range(4000)], rows=1000)
    seen = np.bincount([d[0].token for d in got], minlength=len(want))
    common = want * 4000 >= 5
    chi2 = ((seen - want * 4000)[common] ** 2 / (want * 4000)[common]).sum()
    assert chi2 < common.sum() + 5 * np.sqrt(2 * common.sum())


def test_fork_recomputes_only_the_last_token_of_its_prefix(tiny_model):
    async def run():
        engine = EmbeddedEngine(tiny_model)
        first = await collect(engine, PROMPTS[2], params(1))
        before = engine.stats()
        prefix = np.concatenate([PROMPTS[2], [d.token for d in first[:5]]]).astype(np.int32)
        again = await collect(engine, prefix, params(2))
        after = engine.stats()
        await engine.release("n")
        await collect(engine, prefix, params(3))
        gone = engine.stats()
        await engine.close()
        return len(prefix), before, after, gone, prefix, again

    n, before, after, gone, prefix, again = asyncio.run(run())
    assert (before.prompt_tokens, before.cached_tokens) == (9, 0)
    assert (after.prompt_tokens - before.prompt_tokens, after.cached_tokens - before.cached_tokens) == (n, n - 1)
    assert gone.cached_tokens == after.cached_tokens
    _, logp = plain(tiny_model)
    tokens = [d.token for d in again]
    want = logp(prefix.tolist() + tokens)[n - 1 : -1]
    assert np.allclose([d.logprob for d in again], want[range(len(tokens)), tokens], atol=1e-4)


def request(seed: int) -> GrowRequest:
    return GrowRequest(forest_id=f"f{seed}", problem=PROBLEM, prompt=PROMPTS[seed % 3], seed=seed)


SAMPLING = SamplingConfig(leaves=8, tau=2.2, max_tokens=16, temperature=1.0)


def forests(model_dir, seeds, rows):
    async def run():
        engine = EmbeddedEngine(model_dir, rows=rows)
        try:
            return await asyncio.gather(*(grow(engine, request(s), SAMPLING, 2.2, frozenset({0})) for s in seeds))
        finally:
            await engine.close()

    return asyncio.run(run())


def test_same_seed_regrows_the_same_forest_in_any_batch(tiny_model):
    together = forests(tiny_model, range(6), rows=48)
    assert sum((f.arity > 0).sum() for f in together) > 6  # the forests have forks
    for seed in range(6):
        (alone,) = forests(tiny_model, [seed], rows=3)
        want = together[seed]
        for name in ("parent", "start", "token", "arity", "budget", "leaf_segment", "finish"):
            assert np.array_equal(getattr(alone, name), getattr(want, name)), name
        assert np.allclose(alone.logprob, want.logprob, atol=1e-5) and np.allclose(
            alone.entropy, want.entropy, atol=1e-5
        )


def test_forest_has_the_log_probs_of_its_flattened_leaves(tiny_model):
    _, logp = plain(tiny_model)
    for f in forests(tiny_model, range(3), rows=48):
        for leaf in range(f.leaves):
            tokens = f.leaf_tokens(leaf).tolist()
            want = logp(f.prompt.tolist() + tokens)[len(f.prompt) - 1 : -1][range(len(tokens)), tokens]
            got = np.concatenate([f.logprob[f.start[s] : f.start[s + 1]] for s in f.path(int(f.leaf_segment[leaf]))])
            assert np.allclose(got, want, atol=1e-4)


def test_update_in_flight_draws_the_rest_from_the_new_weights(tiny_model, tmp_path):
    from tests import tiny

    other = tiny.save(tmp_path, seed=5)
    new = AutoModelForCausalLM.from_pretrained(other, dtype=torch.float32).state_dict()
    weights = {n: v.numpy() for n, v in new.items() if n != "lm_head.weight"}

    async def run():
        engine = EmbeddedEngine(tiny_model)
        draws = []
        async for d in engine.generate(PROMPTS[0], params(3, max_tokens=30), "n", "0"):
            draws.append(d)
            if len(draws) == 10:
                await engine.update_weights(1, weights)
        with pytest.raises(ValueError, match="older than the engine's 1"):
            await engine.update_weights(0, weights)
        await engine.close()
        return draws

    draws = asyncio.run(run())
    versions = [d.version for d in draws]
    assert versions == sorted(versions) and versions[0] == 0 and versions[-1] == 1 and len(draws) == 30
    tokens = [d.token for d in draws]
    for model, version in ((tiny_model, 0), (other, 1)):
        _, logp = plain(model)
        want = logp(PROMPTS[0].tolist() + tokens)[len(PROMPTS[0]) - 1 : -1][range(30), tokens].numpy()
        same_version = [i for i, v in enumerate(versions) if v == version]
        assert np.allclose([draws[i].logprob for i in same_version], want[same_version], atol=1e-4)


def test_weights_of_another_model_are_refused_and_change_nothing(tiny_model):
    async def run():
        engine = EmbeddedEngine(tiny_model)
        with pytest.raises(ValueError, match=r"unknown \['nobody.weight'\]"):
            await engine.update_weights(1, {"nobody.weight": np.zeros(3, np.float32)})
        assert engine.version == 0
        await engine.close()

    asyncio.run(run())


def test_stop_tokens_and_limits_end_a_branch(tiny_model):
    (long,), _ = drawn(tiny_model, [(PROMPTS[0], params(4, max_tokens=8), "n")])
    assert [d.finish for d in long] == [None] * 7 + [Finish.LENGTH]
    stop = frozenset({long[3].token})
    (short,), _ = drawn(tiny_model, [(PROMPTS[0], params(4, max_tokens=8, stop=stop), "n")])
    assert short[-1].finish == Finish.STOP and [d.token for d in short] == [d.token for d in long[: len(short)]]


def test_model_fault_reaches_present_and_later_branches(tiny_model):
    async def run():
        engine = EmbeddedEngine(tiny_model)
        engine.model.forward = None  # each later call raises an error in the engine
        lost = [
            await asyncio.gather(*(collect(engine, p, params()) for p in PROMPTS), return_exceptions=True)
            for _ in range(2)
        ]
        await engine.close()
        return lost, engine.gone

    lost, gone = asyncio.run(run())
    assert all(isinstance(fault, EngineLost) for faults in lost for fault in faults)
    assert gone.startswith("the engine failed: TypeError(")


def test_equal_tokens_of_siblings_take_one_cache_slot():
    cache = PrefixCache(1, 1, 2, torch.float32, capacity=2)
    prompt: list[int] = []
    assert [cache.add(prompt, token) for token in (4, 5)] == [True, True]
    a, b = list(prompt), list(prompt)
    assert cache.add(a, 6)
    assert not cache.add(b, 6)
    assert a == b
    assert cache.add(b, 7)
    cache.reserve()
    assert cache.match([4, 5, 6, 7, 8]) == b
    assert cache.capacity >= cache.used == 4


def test_branches_with_equal_tokens_draw_as_if_alone(tiny_model):
    """Two branches of a forest have the same seed. Both have the draws and the log-probs of a single branch, and they
    share every slot."""
    (alone,), _ = drawn(tiny_model, [(PROMPTS[2], params(7), "n")])
    got, stats = drawn(tiny_model, [(PROMPTS[2], params(7), "n"), (PROMPTS[2], params(7), "n")])
    for draws in got:
        assert [d.token for d in draws] == [d.token for d in alone]
        assert np.allclose([d.logprob for d in draws], [d.logprob for d in alone], atol=1e-5)
    assert stats.cached_tokens == len(PROMPTS[2]) - 1


def test_draw_inverts_the_cumulative_distribution():
    """The reference is one cumulative sum in float64. In some cases the vocabulary fills the blocks of the search
    completely."""
    rng = torch.Generator().manual_seed(0)
    for vocabulary in (3, 256, 300, 1000):
        logits = 4 * torch.randn(64, vocabulary, generator=rng)
        coins = torch.rand(64, generator=rng, dtype=torch.float64)
        cumulative = torch.softmax(logits.double(), -1).cumsum(-1)
        exact = torch.searchsorted(cumulative, coins[:, None] * cumulative[:, -1:], right=True)[:, 0]
        got = draw_rows(logits, [params(temperature=1.0)] * 64, coins.tolist())
        assert (
            sum(token == t for (token, _, _), t in zip(got, exact.tolist(), strict=True)) >= 63
        )  # a random number may be at the border of two tokens


@pytest.mark.parametrize("fault", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_without_a_distribution_are_named(fault: float, temperature: float):
    logits = torch.zeros(9, 300)
    logits[8, 299] = fault
    with pytest.raises(FloatingPointError, match="logits are not finite"):
        draw_rows(logits, [params(temperature=temperature)] * 9, [0.5] * 9)


@pytest.mark.parametrize("coin", [0.0, 0.5, 1 - 2**-53])
def test_draw_never_takes_a_token_without_probability(coin):
    logits = torch.full((1, 700), float("-inf"))
    logits[0, [5, 300, 301]] = 0.0
    ((token, logprob, entropy),) = draw_rows(logits, [params(temperature=1.0)], [coin])
    assert token in (5, 300, 301)
    assert (logprob, entropy) == (pytest.approx(-np.log(3)), pytest.approx(np.log(3)))


def test_long_prefix_is_chunked_while_other_branches_draw(tiny_model, monkeypatch):
    """A prefix that is computed in several steps gives the same draws as a prefix that is computed in one step. Two
    branches share its computation."""
    rng = np.random.default_rng(0)
    long = rng.integers(2, 90, 300).astype(np.int32)
    jobs = [(long, params(1), "a"), (long, params(2), "a"), (PROMPTS[0], params(3), "b")]
    whole, _ = drawn(tiny_model, jobs)
    monkeypatch.setattr(packing, "PREFILL_ROWS", 32)
    chunked, stats = drawn(tiny_model, jobs)
    for a, b in zip(whole, chunked, strict=True):
        assert [d.token for d in a] == [d.token for d in b]
        assert np.allclose([d.logprob for d in a], [d.logprob for d in b], atol=1e-5)
    assert stats.cached_tokens == len(long) - 1  # the second branch finds the steps of the first
    one_row_left = rng.integers(2, 90, 31).astype(np.int32)
    _, stats = drawn(tiny_model, [(one_row_left, params(4), "b"), *jobs[:2]])
    assert stats.cached_tokens == len(long) - 1


def test_long_branches_of_a_forest_read_only_their_own_slots(tiny_model, monkeypatch):
    """Prefixes that share little are computed over their own slots, with the draws of branches that are alone."""
    rng = np.random.default_rng(1)
    shared = rng.integers(2, 90, 40)
    prefixes = [np.concatenate([shared, rng.integers(2, 90, 150)]).astype(np.int32) for _ in range(4)]
    monkeypatch.setattr(packing, "PREFILL_ROWS", 64)
    monkeypatch.setattr(packing, "GATHER", 1)
    found = []
    mask = packing._path_mask
    monkeypatch.setattr(packing, "_path_mask", lambda path, *more: found.append(path) or mask(path, *more))
    together, stats = drawn(tiny_model, [(p, params(i), "a") for i, p in enumerate(prefixes)])
    assert len({id(path) for path in found}) == 3  # the first branch reads all slots, because it is alone at first
    assert stats.cached_tokens == 3 * len(shared)
    for i, (prefix, draws) in enumerate(zip(prefixes, together, strict=True)):
        (alone,), _ = drawn(tiny_model, [(prefix, params(i), "a")])
        assert [d.token for d in draws] == [d.token for d in alone]
        assert np.allclose([d.logprob for d in draws], [d.logprob for d in alone], atol=1e-5)


def test_branches_of_older_forests_get_free_rows_first(tiny_model):
    async def run():
        engine = EmbeddedEngine(tiny_model, rows=2)
        ended = []

        async def one(seed, namespace, length):
            await collect(engine, PROMPTS[0], params(seed, max_tokens=length), namespace)
            ended.append(namespace)

        await asyncio.gather(
            one(0, "old", 4),
            one(1, "old", 4),
            one(2, "young", 4),
            one(3, "young", 4),
            one(4, "old", 4),
            one(5, "old", 4),
        )
        await engine.close()
        return ended

    assert asyncio.run(run()) == ["old"] * 4 + ["young"] * 2
