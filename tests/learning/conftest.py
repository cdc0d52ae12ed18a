from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.learning.ranks import Ranks


@pytest.fixture(scope="package")
def ranks() -> Iterator[Callable[[int], Ranks]]:
    """Return a function that maps a number of ranks to `Ranks`. All tests of this folder share these processes."""
    with ExitStack() as started:

        @functools.cache
        def of(world: int) -> Ranks:
            out = Ranks(world)
            started.callback(out.close)
            return out

        yield of
