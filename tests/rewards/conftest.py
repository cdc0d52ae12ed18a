"""Provides one event loop and one pool of two processes for all tests of a module, because a process needs a second for
its imports."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from treeadv.rewards.judgement import Answer, Judgement
from treeadv.rewards.sandbox.pool import VerifierPool

Grade = Callable[..., list[Judgement]]
FOLDER = Path(__file__).parent


@pytest.fixture(autouse=True, scope="session")
def _importable() -> Iterator[None]:
    """Add this folder to sys.path, which worker processes inherit, so that they find `verifier_functions`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def pool(loop: asyncio.Runner) -> Iterator[VerifierPool]:
    made = VerifierPool(workers=2, timeout=2.0, memory_mb=1024)
    yield made
    loop.run(made.close())


@pytest.fixture(scope="module")
def grade(loop: asyncio.Runner, pool: VerifierPool) -> Grade:
    """Return a function that grades answers with the pool of the module, for synchronous tests."""

    def run(*answers: Answer) -> list[Judgement]:
        return loop.run(pool.grade(answers))

    return run
