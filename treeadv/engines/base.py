"""What a generator asks of an engine (docs/architecture.md). Two engines keep this contract: `embedded` and
`sglang`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np

from treeadv.forest import Finish

if TYPE_CHECKING:
    import torch

Weights: TypeAlias = (
    "Mapping[str, np.ndarray | torch.Tensor]"  # every tensor of a model by its name in the model folder
)


@dataclass(frozen=True, slots=True)
class Params:
    """How one branch is drawn. `seed` fixes its random numbers where the engine promises reproduction.

    `max_tokens` counts from the end of the prefix; `stop` are token ids, the one drawn is part of the branch.
    """

    max_tokens: int
    temperature: float
    stop: frozenset[int]
    seed: int


@dataclass(frozen=True, slots=True)
class Draw:
    """One token. `logprob` is of the distribution sampled, `entropy` in nats of the distribution it was drawn from.

    `finish` is set on the last token of a branch; an engine that loses a branch ends its stream with `EngineLost`.
    """

    token: int
    logprob: float
    entropy: float
    version: int
    finish: Finish | None = None


class EngineLost(Exception):
    """The engine cannot continue a branch (it died, hung or refused values). The text is the reason; the draws so far
    stand.
    """


class PathTooLong(Exception):
    """A prompt leaves too little of the model's context for an answer. The text names both."""


class EngineGone(Exception):
    """The engine can draw nothing any more and has to be made anew. The text is the reason."""


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Totals since the start. prompt: prefix tokens that requests came with; cached: of those, found in the cache;
    decoded: drawn.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    decoded_tokens: int = 0
    running: int = 0
    busy_seconds: float = 0.0
    free: int = 0  # branches that could draw at once besides those that run; negative: how many wait


class Engine(Protocol):
    """A language model that draws branches from prefixes and shares keys and values along them."""

    @property
    def version(self) -> int:
        """Policy version that the engine holds; 0 for the base model."""
        ...

    @property
    def longest(self) -> int:
        """The most tokens that a path may have, prompt and answer together."""
        ...

    @property
    def gone(self) -> str:
        """Why it can draw nothing any more; "" while it can."""
        ...

    def generate(self, prefix: np.ndarray, params: Params, namespace: str, tree: str) -> AsyncIterator[Draw]:
        """Draw one branch after `prefix` [n] int32. `namespace` names the forest whose prefixes may share keys and
        values, `tree` the tree in it (requests of one tree belong where its prefix lives). When a token is yielded, the
        prefix that it ends is in the cache or about to be: a sibling may be requested at once. An engine that shares a
        prefix only after the request that drew it has ended (SGLang) draws in chunks of its own and yields a chunk when
        it has ended.
        """
        ...

    async def release(self, namespace: str) -> None:
        """The forest is complete: what is kept for it may go."""
        ...

    async def update_weights(self, version: int, weights: Weights) -> float:
        """Pause, load, forget what older weights computed, go on. Returns seconds. A version that goes backwards is
        refused.
        """
        ...

    def stats(self) -> EngineStats: ...

    async def close(self) -> None: ...
