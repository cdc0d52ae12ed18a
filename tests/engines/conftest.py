"""Provides one event loop and one real SGLang server for this folder. The engines of the tests use this server, except
in tests that kill their own server."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engines.helpers import configure
from treeadv.engines.base import Engine
from treeadv.engines.embedded import EmbeddedEngine

Run = Callable[[Awaitable[Any]], Any]

needs_sglang = pytest.param(
    "sglang",
    marks=[
        pytest.mark.sglang,
        pytest.mark.skipif(
            importlib.util.find_spec("sglang") is None, reason="SGLang is not installed (make sglang-cpu)"
        ),
    ],
)


@pytest.fixture(scope="package")
def run() -> Iterator[Run]:
    """Return a function that runs a coroutine on the event loop of the folder. All servers and engines use this
    loop."""
    loop = asyncio.new_event_loop()
    yield loop.run_until_complete
    loop.close()


async def start_server(model: Path, log: Path, **arguments: Any) -> Any:
    """Start a real server of `model` with `arguments` and wait until it answers."""
    from treeadv.engines.fleet.member import ServerGone
    from treeadv.engines.sglang.client import Client
    from treeadv.engines.sglang.server import ServerProcess

    process = await ServerProcess.start(configure(args=arguments).generator, str(model), log)
    client = Client(process.url, 60, 60)
    while True:
        try:
            await client.get("/model_info", timeout=5)
        except ServerGone:
            assert not process.ended, process.tail()
            await asyncio.sleep(0.2)
        else:
            await client.close()
            return process


@pytest.fixture(scope="package")
def server(run: Run, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start a real server with the tiny model, and yield its address."""
    process = run(start_server(tiny_model, tmp_path_factory.mktemp("server") / "log"))
    yield process.url
    run(process.stop())


@pytest.fixture(scope="module", params=["embedded", needs_sglang])
def engine(
    request: pytest.FixtureRequest, run: Run, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    """Yield an engine with the tiny model at version 0."""
    if request.param == "embedded":
        made: Engine = EmbeddedEngine(tiny_model, rows=32, threads=1)
    else:
        from treeadv.engines.sglang.engine import SGLangEngine

        url = request.getfixturevalue("server")
        made = run(SGLangEngine.create(configure(url, root=tmp_path_factory.mktemp("run")), tiny_model, 0))
    yield made
    run(made.close())
