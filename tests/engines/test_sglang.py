"""Tests the SGLang engine on the real server beyond the common contract: chunks, methods of loading weights, several
servers.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.engines.conftest import Run, start_server
from tests.engines.faulty_proxy import FaultyProxy
from tests.engines.helpers import PROBLEM, PROMPT, STUBS, Plain, branch, chi_square_p, configure, params, weights
from treeadv.cli.main import main
from treeadv.config import SamplingConfig
from treeadv.engines.base import Draw
from treeadv.engines.embedded import EmbeddedEngine
from treeadv.engines.fleet.fleet import DISCOVERY_INTERVAL
from treeadv.engines.sglang.engine import SGLangEngine
from treeadv.engines.sglang.member import QUEUE, Member
from treeadv.engines.sglang.reply import Chunk
from treeadv.engines.sglang.server import free_port
from treeadv.engines.sglang.weights import FLUSH_TRIES
from treeadv.errors import BadInput
from treeadv.forest import Finish, Forest
from treeadv.sampling.request import GrowRequest
from treeadv.sampling.sampler import grow

pytestmark = [
    pytest.mark.sglang,
    pytest.mark.skipif(importlib.util.find_spec("sglang") is None, reason="SGLang is not installed (make sglang-cpu)"),
]
UNLIKELY = 1e-4  # p-value below which two distributions differ; the tests make about ten such comparisons
# The fast tests use chunks of several tokens. A chunk of one token or of a whole branch is a rarer setting.
CHUNKS = [pytest.param(1, marks=pytest.mark.slow), 8, pytest.param(64, marks=pytest.mark.slow)]


class Make:
    """A factory of engines on the server of the session. It closes the engines at the end."""

    def __init__(self, run: Run, server: str, model: Path, root: Path) -> None:
        self.run, self.server, self.model, self.root = run, server, model, root
        self.made: list[SGLangEngine] = []

    def __call__(self, url: str = "", **how: object) -> SGLangEngine:
        config = configure(url or self.server, root=self.root / str(len(self.made)), **how)  # type: ignore[arg-type]
        self.made.append(self.run(SGLangEngine.create(config, self.model, 0)))
        return self.made[-1]


@pytest.fixture
def make(run: Run, server: str, tiny_model: Path, tmp_path: Path) -> Iterator[Make]:
    maker = Make(run, server, tiny_model, tmp_path)
    yield maker
    for engine in maker.made:
        run(engine.close())


def test_server_is_the_first_release_on_the_python_path(server: str) -> None:
    """`make sglang-release` puts a release before the environment on the Python path. The tests must use this
    release."""
    with urllib.request.urlopen(f"{server}/server_info") as reply:
        assert json.load(reply)["version"] == metadata.version("sglang")


def test_later_chunks_find_all_but_one_token_in_the_cache(run: Run, make: Make) -> None:
    engine = make(chunk=8)
    before = engine.stats()
    run(branch(engine, np.roll(PROMPT, 7), params(64)))
    after = engine.stats()
    prefixes = [len(PROMPT) + 8 * i for i in range(8)]
    assert after.prompt_tokens - before.prompt_tokens == sum(prefixes)
    assert after.cached_tokens - before.cached_tokens == sum(p - 1 for p in prefixes[1:])


@pytest.mark.parametrize("chunk", CHUNKS)
def test_tokens_follow_the_distribution_for_any_chunk(run: Run, make: Make, tiny_model: Path, chunk: int) -> None:
    """The test compares the second and third token of 400 branches with their exact distribution, at a temperature at
    which many tokens are likely."""
    engine, temperature, n = make(chunk=chunk), 6.0, 400

    async def branches() -> list:
        return await asyncio.gather(*(branch(engine, PROMPT, params(3, temperature=temperature)) for _ in range(n)))

    drawn = run(branches())
    plain = Plain(tiny_model)
    first = plain.logp(PROMPT, [0], temperature)[0].exp().numpy()
    expected = np.stack(
        [plain.logp(np.append(PROMPT, a), [0], temperature)[0].exp().numpy() for a in range(len(first))]
    )
    for position, law in ((0, first), (1, first @ expected)):
        counts = np.bincount([d[position].token for d in drawn], minlength=len(first))
        assert chi_square_p(counts, n * law / law.sum()) > UNLIKELY


@pytest.fixture(scope="module")
def embedded_shapes(run: Run, tiny_model: Path) -> Counter:
    engine = EmbeddedEngine(tiny_model, rows=64, threads=1)
    return Counter(map(shape, forests(run, engine, 150)))


TAU = 4.0  # about half of the entropies of the tiny model at this temperature are higher
FORKING = SamplingConfig(
    leaves=4, trees=1, rule="entropy", min_gap=2, min_tail=2, max_depth=2, max_tokens=12, temperature=2.0, topup=False
)


def forests(run: Run, engine: SGLangEngine | EmbeddedEngine, n: int) -> list[Forest]:
    async def grow_all() -> list[Forest]:
        requests = [GrowRequest(forest_id=f"law-{i}", problem=PROBLEM, prompt=PROMPT, seed=i) for i in range(n)]
        return await asyncio.gather(*(grow(engine, r, FORKING, TAU, frozenset()) for r in requests))

    return run(grow_all())


def shape(forest: Forest) -> tuple[int, int]:
    """Return the position of the first fork, or of the end, and the number of leaves."""
    return int(forest.start[1]), forest.leaves


@pytest.mark.parametrize("chunk", CHUNKS)
def test_forest_distribution_equals_embedded_for_any_chunk(
    run: Run, make: Make, embedded_shapes: Counter, chunk: int
) -> None:
    """A two-sample chi-square test compares 150 forests of this engine with 150 forests of the embedded engine by their
    shapes. The forests have entropy forks."""
    found = Counter(map(shape, forests(run, make(chunk=chunk), 150)))
    kinds = sorted({*found, *embedded_shapes})
    assert len(kinds) > 4
    a, b = (np.array([c[k] for k in kinds], float) for c in (found, embedded_shapes))
    rare = a + b < 10
    a, b = (np.append(x[~rare], x[rare].sum()) for x in (a, b))
    statistic = float(((a - b) ** 2 / np.maximum(a + b, 1)).sum())
    assert float(torch.special.gammaincc(torch.tensor((len(a) - 1) / 2), torch.tensor(statistic / 2))) > UNLIKELY


def count_requests(member: Member) -> list[int]:
    """Record the prefix lengths of all later requests to the member. Returns the list to which they are appended."""
    requests: list[int] = []
    draw = member.draw

    async def counted(ids: list[int], *rest: Any) -> Chunk:
        requests.append(len(ids))
        return await draw(ids, *rest)

    member.draw = counted  # type: ignore[method-assign]
    return requests


def test_every_fork_of_a_forest_finds_its_prefix_in_the_cache(run: Run, make: Make) -> None:
    """At least 99 % of the prefixes of all requests come from the cache. The first requests of the roots and the last
    token of each prefix do not count."""
    engine = make(chunk=4)
    requests = count_requests(engine.members[0])
    sampling = SamplingConfig(
        leaves=8, trees=2, rule="fixed", rule_options={"gap": 11}, max_tokens=64, temperature=1.0, min_tail=1
    )
    prompt = np.random.default_rng(5).integers(2, 97, 200).astype(np.int32)
    run(
        grow(engine, GrowRequest(forest_id="reuse", problem=PROBLEM, prompt=prompt, seed=1), sampling, 1.0, frozenset())
    )
    stats = engine.stats()
    assert stats.prompt_tokens == sum(requests)
    # The two roots start at the same time, so each prefills the prompt.
    assert stats.cached_tokens >= 0.99 * (sum(requests[2:]) - len(requests[2:]))


def test_more_forests_than_a_server_has_room_for_all_grow(run: Run, make: Make) -> None:
    engine = make(chunk=4)
    (member,) = engine.members
    under_way, most = 0, 0
    generate = member.client.generate

    async def counted(payload: dict[str, Any]) -> Any:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        try:
            return await generate(payload)
        finally:
            under_way -= 1

    member.client.generate = counted  # type: ignore[method-assign]
    prompts = np.random.default_rng(7).integers(2, 97, (80, 24)).astype(np.int32)
    sampling = SamplingConfig(
        leaves=4, trees=2, rule="fixed", rule_options={"gap": 4}, max_tokens=12, temperature=1.0, min_tail=1
    )

    async def all_at_once() -> list[Forest]:
        requests = [
            GrowRequest(forest_id=f"many-{i}", problem=PROBLEM, prompt=prompt, seed=i)
            for i, prompt in enumerate(prompts)
        ]
        return await asyncio.gather(*(grow(engine, r, sampling, 1.0, frozenset()) for r in requests))

    grown = run(all_at_once())
    assert [f.forest_id for f in grown] == [f"many-{i}" for i in range(80)]
    assert all(f.leaves == 4 and (f.finish == Finish.LENGTH).all() for f in grown)
    assert all(len(f.leaf_tokens(i)) == 12 for f in grown for i in range(4))
    assert member.limits is not None
    assert most == QUEUE * member.limits.running
    assert engine.stats().running == 0


@pytest.fixture(scope="module")
def two_ranks(run: Run, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start a real server with two tensor-parallel ranks, and yield its address."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SGLANG_CPU_OMP_THREADS_BIND", "0|1")  # the core of each rank on a machine with one NUMA node
        process = run(start_server(tiny_model, tmp_path_factory.mktemp("ranks") / "log", tp_size=2))
    yield process.url
    run(process.stop())


@pytest.mark.parametrize(
    "ranks",
    [
        1,
        pytest.param(
            2, marks=[pytest.mark.slow, pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")]
        ),
    ],
)
@pytest.mark.parametrize("transport", ["disk", "tensor", "distributed"])
def test_every_method_of_loading_gives_the_new_weights(
    run: Run, make: Make, tiny_model: Path, transport: str, ranks: int, request: pytest.FixtureRequest
) -> None:
    engine = make(request.getfixturevalue("two_ranks") if ranks == 2 else "", weights=transport)
    (limits,) = (m.limits for m in engine.members)
    assert limits is not None
    assert limits.ranks == ranks
    for version, scale in ((1, 1.1), (2, 0.9)):
        new = weights(tiny_model, scale)
        assert run(engine.update_weights(version, new)) > 0
        draws = run(branch(engine, PROMPT, params(24, temperature=2.0)))
        assert {d.version for d in draws} == {version}
        assert max(Plain(tiny_model, new).differences(PROMPT, draws, temperature=2.0)) < 1e-4
        assert engine.updates[-1].bytes == sum(w.nbytes for w in new.values())


def test_eval_gives_the_greedy_answers_of_the_embedded_engine(server: str, tiny_model: Path, tmp_path: Path) -> None:
    data = tmp_path / "sums.jsonl"
    data.write_text("".join(json.dumps({"problem": f"{i}+1=", "answer": str(i + 1)}) + "\n" for i in range(3)))
    greedy = ["sampling.temperature=1e-5", "sampling.max_tokens=12", "generator.threads=1", "task.verifier=exact"]
    engines = {"embedded": [], "sglang": [f"generator.sglang.url={server}", f"generator.sglang.stubs={STUBS}"]}
    answers = {}
    for name, options in engines.items():
        out = tmp_path / name
        args = ["--model", str(tiny_model), "--data", str(data), "--samples", "2", "--out", str(out)]
        assert main(["eval", *args, f"generator.engine={name}", *options, *greedy]) == 0
        lines = [json.loads(line) for line in (out / "answers" / "sums.jsonl").read_text().splitlines()]
        answers[name] = {line["place"]: [a["text"] for a in line["answers"]] for line in lines}
    assert answers["sglang"] == answers["embedded"] and len(answers["sglang"]) == 3


def test_repeated_update_does_nothing(run: Run, make: Make, tiny_model: Path) -> None:
    engine = make()
    run(engine.update_weights(1, weights(tiny_model)))
    run(engine.update_weights(1, weights(tiny_model, 5.0)))
    assert len(engine.updates) == 1


@pytest.mark.parametrize("fault", ["shape", "missing", "unknown"])
def test_weights_of_another_model_never_reach_the_server(run: Run, make: Make, tiny_model: Path, fault: str) -> None:
    engine, wrong = make(), weights(tiny_model)
    if fault == "shape":
        wrong["model.norm.weight"] = wrong["model.norm.weight"][:1]
    else:
        norm = wrong.pop("model.norm.weight")
        if fault == "unknown":
            wrong |= {"model.norm.weight": norm, "a.b": norm}
    with pytest.raises(ValueError, match=r"these weights are of another model: (model.norm.weight|a.b) is"):
        run(engine.update_weights(1, wrong))
    assert {d.version for d in run(branch(engine, PROMPT, params(8)))} == {0}


def test_entropy_bounds_contain_the_exact_entropy(run: Run, make: Make, tiny_model: Path) -> None:
    plain = Plain(tiny_model)
    for mode, sign in (("lower", -1), ("upper", 1), ("truncated", -1)):
        draws = run(branch(make(entropy=mode, top_k=8), PROMPT, params(24, temperature=4.0)))
        logp = plain.logp(PROMPT, [d.token for d in draws], 4.0)
        exact = -(logp.exp() * logp).sum(-1).numpy()
        assert (sign * (np.array([d.entropy for d in draws]) - exact) >= -1e-4).all()
        assert np.abs(np.array([d.entropy for d in draws]) - exact).max() > 1e-3  # the entropy is a bound


class Router:
    """A real sglang-router that starts without a list of servers."""

    def __init__(self, log: Path) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "sglang_router.launch_router",
                    "--host=127.0.0.1",
                    f"--port={self.url.rpartition(':')[2]}",
                    f"--prometheus-port={free_port()}",
                ],
                stdout=out,
                stderr=out,
            )

    def list_when_up(self, server: str) -> None:
        """Add a server to the list of the router as soon as the router is up."""
        while "it does not answer":
            try:
                return self.list(server)
            except OSError:
                time.sleep(0.5)

    def list(self, server: str) -> None:
        self._call("POST", "/workers", {"url": server})

    def unlist(self, server: str) -> None:
        (number,) = (w["id"] for w in self._call("GET", "/workers")["workers"] if w["url"] == server)
        self._call("DELETE", f"/workers/{number}")

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        data = json.dumps(body).encode() if body else None
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request) as reply:
            return json.load(reply)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def router(tmp_path: Path) -> Iterator[Router]:
    made = Router(tmp_path / "router")
    yield made
    made.stop()


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("sglang_router") is None, reason="sglang-router is not installed (make sglang-cpu)"
)
def test_late_servers_behind_a_router_get_weights_before_traffic(
    run: Run, make: Make, router: Router, tiny_model: Path, tmp_path: Path
) -> None:
    """The router starts after the engine. Servers are added to its list one by one, and then removed one by one."""
    new = weights(tiny_model, 1.1)
    second = run(start_server(tiny_model, tmp_path / "log"))

    async def when(serving: list[str]) -> None:
        async with asyncio.timeout(120):
            while sorted(m.url for m in engine.members if m.ready.is_set()) != sorted(serving):
                await asyncio.sleep(0.1)

    async def drawn(tokens: int) -> list[list[Draw]]:
        return await asyncio.gather(*(branch(engine, PROMPT, params(tokens, temperature=2.0)) for _ in range(16)))

    async def drawn_while_the_first_leaves() -> list[list[Draw]]:
        router.unlist(make.server)
        leaving, draws = asyncio.create_task(when([second.url])), []
        while not leaving.done():
            draws += await drawn(40)
        await leaving
        return draws

    listing = threading.Thread(target=router.list_when_up, args=[make.server])
    listing.start()
    engine = make(router.url, weights="tensor")
    listing.join()
    assert [m.url for m in engine.members] == [make.server]
    run(engine.update_weights(3, new))
    router.list(second.url)
    run(when([make.server, second.url]))
    counted = [count_requests(m) for m in engine.members]
    draws = run(drawn(8))
    plain = Plain(tiny_model, new)
    assert {d.version for ds in draws for d in ds} == {3}
    assert max(max(plain.differences(PROMPT, ds, temperature=2.0)) for ds in draws) < 1e-4
    assert all(counted)
    assert {len(ds) for ds in run(drawn_while_the_first_leaves())} == {40}
    router.unlist(second.url)
    run(asyncio.sleep(2 * DISCOVERY_INTERVAL))
    assert [m.url for m in engine.members] == [second.url]  # the engine ignores an empty list
    run(second.stop())


class TestBehindAProxy:
    @pytest.fixture
    @staticmethod
    def proxies(run: Run, server: str) -> Iterator[list[FaultyProxy]]:
        made = [FaultyProxy(server), FaultyProxy(server)]
        for p in made:
            run(p.start())
        yield made
        for p in made:
            run(p.close())

    def test_server_without_logit_processors_needs_entropy_bounds(
        self, run: Run, make: Make, proxies: list[FaultyProxy]
    ) -> None:
        proxies[0].server_info = {"enable_custom_logit_processor": False}
        with pytest.raises(BadInput, match="entropy=exact needs a server started with --enable-custom-logit-processor"):
            make(proxies[0].url)
        assert len(run(branch(make(proxies[0].url, entropy="lower"), PROMPT, params(8)))) == 8

    def test_server_with_several_copies_of_the_model_is_refused(self, make: Make, proxies: list[FaultyProxy]) -> None:
        proxies[0].server_info = {"dp_size": 2}
        with pytest.raises(BadInput, match="runs dp_size=2 copies of the model; start one server for each copy"):
            make(proxies[0].url)

    def test_trees_of_a_dead_server_move_to_another(self, run: Run, make: Make, proxies: list[FaultyProxy]) -> None:
        engine = make(",".join(p.url for p in proxies))

        async def grow_through_a_death() -> list[Forest]:
            requests = [GrowRequest(forest_id=f"move-{i}", problem=PROBLEM, prompt=PROMPT, seed=i) for i in range(12)]
            growing = asyncio.gather(*(grow(engine, r, FORKING, TAU, frozenset()) for r in requests))
            while not all(p.rids for p in proxies):
                await asyncio.sleep(0)
            proxies[0].dead = True
            return await growing

        grown = run(grow_through_a_death())
        assert all((f.finish == 1).all() and f.leaves <= 4 for f in grown)
        assert all(len(f.leaf_tokens(i)) == 12 for f in grown for i in range(f.leaves))
        assert [m.ready.is_set() for m in engine.members].count(True) == 1

    def test_update_retracts_waiting_requests_and_loses_no_token(
        self, run: Run, make: Make, proxies: list[FaultyProxy], tiny_model: Path
    ) -> None:
        """Some releases count retracted requests as waiting. The engine keeps draws from before the update; later draws
        use the new weights."""
        engine, new = make(proxies[0].url, chunk=32), weights(tiny_model, 1.1)

        async def with_update() -> list[list[Draw]]:
            proxies[0].flush_refusals = 1
            branches = [asyncio.create_task(branch(engine, np.roll(PROMPT, i), params(96))) for i in range(4)]
            while engine.stats().decoded_tokens < 2 * 32:
                await asyncio.sleep(0)
            await engine.update_weights(1, new)
            return await asyncio.gather(*branches)

        drawn = run(with_update())
        assert proxies[0].flush_refusals == 0
        for i, draws in enumerate(drawn):
            versions = [d.version for d in draws]
            assert len(draws) == 96
            assert versions == sorted(versions)
            assert set(versions) == {0, 1}
            turn, prefix = versions.index(1), np.roll(PROMPT, i)
            assert max(Plain(tiny_model).differences(prefix, draws[:turn])) < 1e-4
            assert max(Plain(tiny_model, new).differences(prefix, draws, skip=turn)) < 1e-4

    def test_server_left_paused_by_an_update_resumes_with_weights(
        self, run: Run, make: Make, proxies: list[FaultyProxy], tiny_model: Path
    ) -> None:
        engine, new = make(proxies[0].url), weights(tiny_model, 1.1)
        proxies[0].flush_refusals = FLUSH_TRIES
        run(asyncio.wait_for(engine.update_weights(1, new), 60))
        draws = run(branch(engine, PROMPT, params(24)))
        assert {d.version for d in draws} == {1}
        assert max(Plain(tiny_model, new).differences(PROMPT, draws)) < 1e-4
