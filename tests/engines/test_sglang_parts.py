"""Tests the parts of the SGLang engine that need no server: the entropy and its bounds, the command line, addresses,
and weights on disk."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from tests.engines.helpers import STUBS, configure
from treeadv.engines.fleet.addresses import resolve
from treeadv.engines.fleet.member import Refused
from treeadv.engines.sglang import features
from treeadv.engines.sglang.client import Client
from treeadv.engines.sglang.entropy import KEY, TEMPERATURE, EntropyTap, from_top, reference
from treeadv.engines.sglang.probe import prompt_tokens
from treeadv.engines.sglang.reply import Ask, read, sent_back
from treeadv.engines.sglang.server import arguments
from treeadv.engines.sglang.weights import tensors_of
from treeadv.errors import BadInput


def request_of(middle_chunks: int = 0) -> SimpleNamespace:
    return SimpleNamespace(inflight_middle_chunks=middle_chunks, customized_info=None)


def test_tap_records_entropy_of_each_row_and_keeps_logits() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)) * 4
    before = logits.clone()
    temperatures = [0.5, 1.0, 2.0]
    requests = [request_of() for _ in temperatures]
    params = [{"__req__": r, TEMPERATURE: t} for r, t in zip(requests, temperatures, strict=True)]
    assert torch.equal(EntropyTap()(logits, params), before)
    for row, temperature, request in zip(logits, temperatures, requests, strict=True):
        expected = torch.distributions.Categorical(logits=row / temperature).entropy()
        assert request.customized_info[KEY] == pytest.approx([float(expected)], abs=1e-5)


def test_tap_skips_the_middle_of_a_chunked_prefill() -> None:
    middle, last = request_of(1), request_of()
    EntropyTap()(torch.randn(2, 9), [{"__req__": middle, TEMPERATURE: 1.0}, {"__req__": last, TEMPERATURE: 1.0}])
    assert middle.customized_info is None
    assert len(last.customized_info[KEY]) == 1


def test_logit_of_minus_infinity_adds_no_entropy() -> None:
    request = request_of()
    EntropyTap()(torch.tensor([[0.0, 0.0, -math.inf]]), [{"__req__": request, TEMPERATURE: 1.0}])
    assert request.customized_info[KEY] == pytest.approx([math.log(2)])


def test_serialised_processor_unpickles_to_the_tap() -> None:
    assert pickle.loads(bytes.fromhex(json.loads(reference())["callable"])) is EntropyTap


@given(st.lists(st.floats(-8, 8), min_size=4, max_size=60), st.integers(2, 60))
def test_top_k_bounds_contain_the_exact_entropy(logits: list[float], k: int) -> None:
    logp = torch.log_softmax(torch.tensor(logits, dtype=torch.float64), dim=-1)
    exact = float(-(logp.exp() * logp).sum())
    top = logp.sort(descending=True).values[:k].tolist()
    truncated, lower, upper = (from_top(top, len(logits), mode) for mode in ("truncated", "lower", "upper"))
    assert truncated <= lower + 1e-9
    assert lower <= exact + 1e-9
    assert exact <= upper + 1e-9


@pytest.mark.parametrize("mode", ["lower", "upper"])
def test_entropy_bounds_are_exact_for_a_flat_tail(mode: str) -> None:
    assert from_top([math.log(1 / 8)] * 3, 8, mode) == pytest.approx(math.log(8))


def test_tokens_without_spans_have_the_starting_version() -> None:
    meta = {
        "finish_reason": {"type": "length"},
        "output_token_logprobs": [[-1.0, 5, None]] * 2,
        KEY: [0.1, 0.2],
        "prompt_tokens": 3,
        "cached_tokens": 0,
    }
    ask = Ask(tokens=2, entropy="exact", vocabulary=9, version=4)
    assert read({"output_ids": [5, 5], "meta_info": meta}, ask).versions == [4, 4]
    spans = [{"version": "4", "start": 0, "end": 1}, {"version": "6", "start": 1, "end": 2}]
    assert read({"output_ids": [5, 5], "meta_info": meta | {"weight_versions": spans}}, ask).versions == [4, 6]
    with pytest.raises(Refused, match="cover 1 of 2"):
        read({"output_ids": [5, 5], "meta_info": meta | {"weight_versions": spans[:1]}}, ask)


def test_token_outside_of_the_vocabulary_is_refused() -> None:
    meta = {"finish_reason": {"type": "length"}, "output_token_logprobs": [[-1.0, 9, None]], KEY: [0.1]}
    with pytest.raises(Refused, match="outside of the vocabulary of 9"):
        read(
            {"output_ids": [9], "meta_info": meta | {"prompt_tokens": 3, "cached_tokens": 0}},
            Ask(tokens=2, entropy="exact", vocabulary=9, version=0),
        )


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            {"meta_info": {"finish_reason": {"type": "abort"}}},
            True,
        ),  # the reply of a waiting request has no counts and no entropies
        ({"meta_info": {"finish_reason": {"type": "length"}}}, False),
        ({"meta_info": {"finish_reason": None}}, False),
        (["<html>"], False),
    ],
)
def test_request_is_retracted_only_when_the_server_says_so(body: object, expected: bool) -> None:
    assert sent_back(body) is expected


def test_reply_without_the_prompt_tokens_is_refused() -> None:
    assert prompt_tokens({"meta_info": {"input_token_logprobs": [[None, 5, None], [-0.5, 7, None]]}}) == [5, 7]
    for spoilt in ([], {"meta_info": {}}, {"meta_info": {"input_token_logprobs": [[1.0]]}}):
        with pytest.raises(Refused, match="does not list the prompt's tokens"):
            prompt_tokens(spoilt)


def test_user_arguments_override_default_server_arguments() -> None:
    config = configure(args={"max_total_tokens": 900, "enable-metrics": False, "disable-radix-cache": True}).generator
    line = arguments(config, "MODEL", 7)
    assert line[line.index("--max-total-tokens") + 1] == "900"
    assert "--enable-metrics" not in line
    assert "--disable-radix-cache" in line
    assert {"--enable-custom-logit-processor", "--disable-overlap-schedule"} <= set(line)
    assert "--disable-overlap-schedule" not in arguments(configure(entropy="lower").generator, "MODEL", 7)
    gpu = arguments(configure(device="cuda").generator, "MODEL", 7)
    assert "torch_native" not in gpu
    assert "--disable-cuda-graph" not in gpu


def test_argument_in_two_spellings_is_refused() -> None:
    with pytest.raises(BadInput, match="args has max_total_tokens and max-total-tokens, which are one argument"):
        configure(args={"max_total_tokens": 900, "max-total-tokens": 800})


def test_discovery_lists_servers_behind_a_router() -> None:
    async def workers(_: web.Request) -> web.Response:
        return web.json_response(
            {"workers": [{"id": "1", "url": "http://10.0.0.2:30000/"}, {"id": "2", "url": "http://10.0.0.1:30000"}]}
        )

    async def none_yet(_: web.Request) -> web.Response:
        return web.json_response({"workers": [], "total": 0})

    async def check() -> None:
        app, plain, empty = web.Application(), web.Application(), web.Application()
        app.router.add_get("/workers", workers)
        empty.router.add_get("/workers", none_yet)
        urls = []
        runners = [web.AppRunner(a) for a in (app, plain, empty)]
        for runner in runners:
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            urls.append(f"http://127.0.0.1:{runner.addresses[0][1]}")
        assert await resolve("generator.sglang.url", urls[0]) == ["http://10.0.0.1:30000", "http://10.0.0.2:30000"]
        assert await resolve("generator.sglang.url", urls[1]) == [urls[1]]
        assert await resolve("generator.sglang.url", urls[2]) == []
        assert await resolve("generator.sglang.url", ", ".join(urls)) == sorted(
            ["http://10.0.0.1:30000", "http://10.0.0.2:30000", urls[1]]
        )
        for runner in runners:
            await runner.cleanup()

    asyncio.run(check())


def test_address_without_http_is_refused() -> None:
    with pytest.raises(BadInput, match="localhost:30000 is not an http address"):
        asyncio.run(resolve("generator.sglang.url", "localhost:30000"))


@pytest.mark.parametrize(
    ("lacking", "how", "message"),
    [
        (set(), ("disk", True), ""),
        ({"/update_weights_from_tensor", "/tokenize", "disable_overlap_schedule"}, ("disk", False), ""),
        (
            {"/flush_cache", "/pause_generation"},
            ("disk", True),
            r"SGLang 9\.9 cannot be driven: it lacks /pause_generation, /flush_cache;",
        ),
        ({"/update_weights_from_tensor"}, ("tensor", True), "it lacks /update_weights_from_tensor;"),
        ({"/update_weights_from_distributed"}, ("distributed", True), "it lacks /update_weights_from_distributed;"),
        (
            {"tp_size", "weight_version"},
            ("disk", True),
            "it lacks weight_version of /model_info, tp_size of /server_info;",
        ),
        ({"max_model_len"}, ("disk", True), "it lacks max_model_len of /v1/models;"),
        ({"disable_overlap_schedule"}, ("disk", True), "it lacks disable_overlap_schedule of /server_info;"),
        ({"/server_info"}, ("disk", True), "this server cannot be driven: it lacks /server_info;"),
    ],
)
def test_refusal_names_every_feature_that_a_server_lacks(
    lacking: set[str], how: tuple[str, bool], message: str
) -> None:
    """Features that the configuration does not use may be missing. The release number is not checked."""
    facts = {name: False for name in (*sum(features.FACTS.values(), ()), *features.EXACT) if name not in lacking} | {
        "version": "9.9"
    }

    async def answer(request: web.Request) -> web.Response:
        return web.json_response({"data": [facts]} if request.path == features.MODELS else facts)

    async def check() -> None:
        app = web.Application()
        for path in {*features.CALLS, *sum(features.OF_TRANSPORT.values(), ())} - lacking:
            app.router.add_route("GET" if path in features.FACTS else "POST", path, answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        client = Client(f"http://127.0.0.1:{runner.addresses[0][1]}", 5, 5)
        try:
            await features.check(client, *how)
        finally:
            await client.close()
            await runner.cleanup()

    with pytest.raises(BadInput, match=message) if message else contextlib.nullcontext():
        asyncio.run(check())


def test_weights_have_server_dtype_and_no_tied_output_matrix() -> None:
    array = np.ones((2, 3), np.float32)
    array.flags.writeable = False
    given_ = {"model.embed_tokens.weight": array, "lm_head.weight": array}
    assert list(tensors_of(given_, tied=True)) == ["model.embed_tokens.weight"]
    assert list(tensors_of(given_, tied=False)) == list(given_)


@pytest.mark.parametrize("name", ["sgl_kernel", "torchvision"])
def test_stand_in_refuses_to_load_beside_the_real_package(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / f"{name}-1.0.dist-info").mkdir()
    (tmp_path / f"{name}-1.0.dist-info" / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.0\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(STUBS))
    with pytest.raises(ImportError, match=r"1\.0 is installed: take deploy/sglang_cpu/stubs off PYTHONPATH"):
        __import__(name)
