from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.learning.ranks import Ranks


@pytest.fixture(scope="package")
def ranks() -> Iterator[Callable[[int], Ranks]]:
    """A function from a number of ranks to those ranks, which all tests of this folder share."""
    with ExitStack() as started:

        @functools.cache
        def of(world: int) -> Ranks:
            out = Ranks(world)
            started.callback(out.close)
            return out

        yield of
