"""Tests the SGLang engine with a server that answers wrongly, hangs, fails or dies. Each fault is injected into the
real server, or into a proxy in front of it.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tests import tiny
from tests.engines.conftest import Run
from tests.engines.faulty_proxy import FaultyProxy
from tests.engines.helpers import PROBLEM, PROMPT, STUBS, Plain, branch, configure, params, weights
from treeadv.config import SamplingConfig
from treeadv.engines.base import EngineLost, PathTooLong
from treeadv.engines.sglang.engine import SGLangEngine
from treeadv.errors import BadInput
from treeadv.forest import Finish
from treeadv.sampling.request import GrowRequest
from treeadv.sampling.sampler import grow

pytestmark = [
    pytest.mark.sglang,
    pytest.mark.skipif(importlib.util.find_spec("sglang") is None, reason="SGLang is not installed (make sglang-cpu)"),
]


@pytest.fixture(scope="module")
def proxy(run: Run, server: str) -> Iterator[FaultyProxy]:
    made = FaultyProxy(server)
    run(made.start())
    yield made
    run(made.close())


@pytest.fixture(scope="module")
def proxied(
    run: Run, proxy: FaultyProxy, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SGLangEngine]:
    engine = run(
        SGLangEngine.create(configure(proxy.url, timeout=2.0, root=tmp_path_factory.mktemp("run")), tiny_model, 0)
    )
    yield engine
    run(engine.close())


@pytest.fixture(autouse=True)
def healthy_again(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "proxy" in request.fixturenames:
        request.getfixturevalue("proxy").reset()


def set_logprob(value: Any) -> Callable[[dict[str, Any]], Any]:
    def spoil(body: dict[str, Any]) -> dict[str, Any]:
        body["meta_info"]["output_token_logprobs"][-1][0] = value
        return body

    return spoil


def drop(*path: str) -> Callable[[dict[str, Any]], Any]:
    def spoil(body: dict[str, Any]) -> dict[str, Any]:
        place = body
        for key in path[:-1]:
            place = place[key]
        del place[path[-1]]
        return body

    return spoil


def older_version(body: dict[str, Any]) -> dict[str, Any]:
    """Set a version span in a reply whose versions decrease. This works also with a release that sends no version
    spans."""
    body["meta_info"]["weight_versions"] = [{"version": "-1", "start": 0, "end": len(body["output_ids"])}]
    return body


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (set_logprob(float("nan")), "log-probability nan is not a finite number"),
        (set_logprob(float("-inf")), "log-probability -inf is not a finite number"),
        (set_logprob(None), "log-probability None is not a finite number"),
        (set_logprob(0.5), "log-probability 0.5 is outside"),
        (drop("meta_info", "output_token_logprobs"), "tokens came with log-probabilities of 0 others"),
        (drop("meta_info", "treeadv_entropy"), "malformed reply .KeyError: 'treeadv_entropy'"),
        (drop("output_ids"), "malformed reply .KeyError: 'output_ids'"),
        (lambda body: [body], "malformed reply"),
        (lambda body: "<html>", "malformed reply"),
        (older_version, "the policy version goes backwards"),
    ],
    ids=["nan", "inf", "null", "positive", "no-logprobs", "no-entropies", "no-tokens", "list", "text", "older-version"],
)
def test_unusable_reply_ends_the_branch_with_a_reason(
    run: Run, proxy: FaultyProxy, proxied: SGLangEngine, spoil: Callable[[dict[str, Any]], Any], reason: str
) -> None:
    """The engine keeps earlier draws and yields no draw of the changed reply."""
    proxy.change_after(1, spoil)
    draws = []

    async def collect() -> None:
        async for draw in proxied.generate(PROMPT, params(64), "f", "0"):
            draws.append(draw)

    with pytest.raises(EngineLost, match=reason):
        run(collect())
    assert len(draws) == 8


def test_forest_is_complete_after_refused_replies(run: Run, proxy: FaultyProxy, proxied: SGLangEngine) -> None:
    """The sampler continues from the kept tokens: no leaf is aborted and every log-prob is finite."""
    proxy.change_every(5, set_logprob(float("nan")))
    sampling = SamplingConfig(leaves=6, trees=2, rule="fixed", rule_options={"gap": 5}, max_tokens=24, temperature=0.7)
    forest = run(
        grow(
            proxied, GrowRequest(forest_id="faulty", problem=PROBLEM, prompt=PROMPT, seed=1), sampling, 1.0, frozenset()
        )
    )
    assert proxy.spoilt > 0
    assert forest.leaves == 6
    assert (forest.finish == Finish.LENGTH).all()
    assert [len(forest.leaf_tokens(i)) for i in range(6)] == [24] * 6


@pytest.mark.parametrize("status", [500, 503])
def test_retry_after_a_5xx_duplicates_no_token(
    run: Run, proxy: FaultyProxy, proxied: SGLangEngine, tiny_model: Path, status: int
) -> None:
    proxy.fail(times=2, status=status)
    draws = run(branch(proxied, PROMPT, params(24)))
    assert proxy.failed == 2
    assert len(draws) == 24
    assert max(Plain(tiny_model).differences(PROMPT, draws)) < 1e-4
    assert len(set(proxy.rids)) == len(proxy.rids)


def test_broken_connection_does_not_remove_the_server(run: Run, proxy: FaultyProxy, proxied: SGLangEngine) -> None:
    """A server closes idle connections. A request fails if it uses a connection at the moment at which the server
    closes it."""
    proxy.break_off(times=2)
    assert len(run(branch(proxied, PROMPT, params(24)))) == 24
    assert len(proxy.rids) == 3 + 2
    assert proxied.members[0].ready.is_set()


def test_4xx_is_not_retried(run: Run, proxy: FaultyProxy, proxied: SGLangEngine) -> None:
    proxy.fail(times=1, status=400)
    with pytest.raises(EngineLost, match="HTTP 400"):
        run(branch(proxied, PROMPT, params(24)))
    assert proxy.failed == 1


def test_server_with_lasting_5xx_is_lost_until_it_answers(run: Run, proxy: FaultyProxy, proxied: SGLangEngine) -> None:
    proxy.fail(times=4, status=502)
    with pytest.raises(EngineLost, match="failed 4 times, at last with HTTP 502"):
        run(branch(proxied, PROMPT, params(24)))
    assert len(run(branch(proxied, PROMPT, params(24)))) == 24


def test_server_without_a_token_for_the_timeout_is_lost(run: Run, proxy: FaultyProxy, proxied: SGLangEngine) -> None:
    proxy.hang(times=1)
    started = time.monotonic()
    with pytest.raises(EngineLost, match="gave no token for 2 s"):
        run(branch(proxied, PROMPT, params(24)))
    assert 1.5 < time.monotonic() - started < 10
    assert len(run(branch(proxied, PROMPT, params(24)))) == 24


def test_server_of_another_model_is_refused_at_the_start(run: Run, server: str, tmp_path: Path) -> None:
    other = tiny.save(tmp_path / "other", seed=1)
    with pytest.raises(BadInput, match=r"log-probs differ by .* start the server with the learner's model"):
        run(SGLangEngine.create(configure(server, root=tmp_path), other, 0))


def test_server_with_another_tokenizer_is_refused_at_the_start(
    run: Run, server: str, tiny_model: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for file in tiny_model.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    settings = json.loads((other / "tokenizer.json").read_text())
    vocabulary = settings["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    vocabulary["5"], vocabulary["#"] = vocabulary["#"], vocabulary["5"]
    for a, b in zip("cdefghijk", "lmnopqrst", strict=True):
        vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    (other / "tokenizer.json").write_text(json.dumps(settings))
    with pytest.raises(BadInput, match="its tokenizer is not that of"):
        run(SGLangEngine.create(configure(server, root=tmp_path), other, 0))


def test_server_with_a_smaller_vocabulary_is_refused(run: Run, server: str, tmp_path: Path) -> None:
    other = tiny.save(tmp_path / "other", vocab_extra=10)
    with pytest.raises(BadInput, match=r"tokenizer|learner's model"):
        run(SGLangEngine.create(configure(server, root=tmp_path), other, 0))


def test_unreachable_server_gives_a_one_line_error(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(
        BadInput, match=r"url: http://127.0.0.1:9 does not answer .* \(waited for generator.sglang.start_timeout=1 s\)$"
    ):
        run(SGLangEngine.create(configure("http://127.0.0.1:9", root=tmp_path, start_timeout=1.0), tiny_model, 0))


def test_prompt_that_leaves_no_room_for_an_answer_is_refused(run: Run, proxied: SGLangEngine) -> None:
    request = GrowRequest(forest_id="long", problem=PROBLEM, prompt=PROMPT, seed=1)
    with pytest.raises(
        PathTooLong, match=r"prompt p has 24 tokens: with sampling.max_tokens=2048 .* longer than the 2048 tokens"
    ):
        run(grow(proxied, request, SamplingConfig(max_tokens=2048), 1.0, frozenset()))


@pytest.mark.slow
class TestOwnedServer:
    """Tests a server that the engine starts, with a cache of 600 tokens. Some faults kill it."""

    @pytest.fixture(scope="class")
    @staticmethod
    def owned(run: Run, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SGLangEngine]:
        config = configure(root=tmp_path_factory.mktemp("run"), args={"max-total-tokens": 600})
        engine = run(SGLangEngine.create(config, tiny_model, 0))
        yield engine
        run(engine.close())

    def test_branches_beyond_the_cache_wait_and_do_not_fail(
        self, run: Run, owned: SGLangEngine, tiny_model: Path
    ) -> None:
        async def storm() -> list:
            prefixes = [np.roll(PROMPT, i) for i in range(24)]
            return await asyncio.gather(*(branch(owned, p, params(100)) for p in prefixes))

        drawn = run(storm())
        assert sum(len(d) + len(PROMPT) for d in drawn) > 4 * 600
        assert all(len(d) == 100 and d[-1].finish is Finish.LENGTH for d in drawn)
        worst = max(max(Plain(tiny_model).differences(np.roll(PROMPT, i), d)) for i, d in enumerate(drawn))
        assert worst < 1e-4  # retracted requests are prefilled again and keep the right entropies
        with urllib.request.urlopen(f"{owned.members[0].url}/metrics") as reply:
            counts = re.findall(r"^sglang:evicted_tokens_total\{.*\} (\S+)$", reply.read().decode(), re.MULTILINE)
        assert sum(map(float, counts)) > 0  # the server counts evicted tokens

    def test_replaced_server_gets_newest_weights_before_traffic(
        self, run: Run, owned: SGLangEngine, tiny_model: Path
    ) -> None:
        """The newest weights are published while no server runs."""
        new = weights(tiny_model, 1.1)
        run(owned.update_weights(7, weights(tiny_model, 0.9)))
        process = owned.members[0].process
        assert process is not None

        async def kill_under_way() -> list:
            draws = []
            with pytest.raises(EngineLost, match=r"failed 4 times|was given up"):
                async for draw in owned.generate(PROMPT, params(400), "f", "0"):
                    draws.append(draw)
                    if len(draws) == 9:
                        os.killpg(process.process.pid, signal.SIGKILL)
            return draws

        assert 9 <= len(run(kill_under_way())) < 400
        run(owned.update_weights(8, new))
        draws = run(branch(owned, PROMPT, params(20)))
        assert owned.members[0].process is not process
        assert {d.version for d in draws} == {8}
        assert max(Plain(tiny_model, new).differences(PROMPT, draws)) < 1e-4

    def test_children_of_a_server_end_with_it(self, run: Run, owned: SGLangEngine) -> None:
        process = owned.members[0].process
        assert process is not None
        family = [psutil.Process(process.process.pid), *psutil.Process(process.process.pid).children(recursive=True)]
        assert len(family) > 1
        run(owned.close())
        _, alive = psutil.wait_procs(family, timeout=10)
        assert alive == []


@pytest.mark.slow
def test_server_ends_when_its_parent_process_is_killed(tiny_model: Path, tmp_path: Path) -> None:
    script = f"""
import asyncio, time
from pathlib import Path
from tests.engines.helpers import configure
from treeadv.engines.sglang.server import ServerProcess
async def main():
    server = await ServerProcess.start(configure().generator, {str(tiny_model)!r}, Path({str(tmp_path)!r}) / "log")
    print(server.process.pid, flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""
    starter = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=STUBS.parents[2])
    assert starter.stdout is not None
    server = psutil.Process(int(starter.stdout.readline()))
    time.sleep(2)
    assert server.is_running()
    starter.kill()
    starter.wait()
    server.wait(timeout=20)


@pytest.mark.slow
def test_failed_start_of_a_server_is_reported_with_its_cause(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"SGLang ended while it started[\s\S]*--no-such-flag"):
        run(SGLangEngine.create(configure(root=tmp_path, args={"no-such-flag": True}), tiny_model, 0))
