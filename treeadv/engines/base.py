"""The protocol of engines (docs/architecture.md). The engines `embedded` and `sglang` implement it."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Params:
    """The parameters of one branch. `seed` fixes the random numbers if the engine supports reproduction.

    `max_tokens` counts from the end of the prefix. `stop` holds the ids of the stop tokens. A drawn stop token is part
    of the branch.
    """

    max_tokens: int
    temperature: float
    stop: frozenset[int]
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """One drawn token.

    `logprob` is the log-probability of the token under the sampled distribution. `entropy` is the entropy of this
    distribution in nats. `finish` is set on the last token of a branch. An engine that loses a branch raises
    `EngineLost` instead.
    """

    token: int
    logprob: float
    entropy: float
    version: int
    finish: Finish | None = None


class EngineLost(Exception):
    """The error of an engine that cannot continue a branch, because it ended, hung or refused values.

    The message is the reason. The tokens that were already drawn stay valid.
    """


class PathTooLong(Exception):
    """The error of a prompt that leaves too little of the model's context for an answer.

    The message names both lengths.
    """


class EngineGone(Exception):
    """The error of an engine that can draw no more tokens and must be replaced. The message is the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """The counters of an engine since its start, and its current load.

    `prompt_tokens` counts the prefix tokens of requests. `cached_tokens` counts the prefix tokens that were in the
    cache. `decoded_tokens` counts the drawn tokens.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    decoded_tokens: int = 0
    running: int = 0
    busy_seconds: float = 0.0
    free: int = 0  # free rows for further branches; a negative number counts waiting branches


class Engine(Protocol):
    """A language model that draws branches from prefixes and shares keys and values along them."""

    @property
    def version(self) -> int:
        """Return the policy version that the engine holds; 0 is the base model."""
        ...

    @property
    def longest(self) -> int:
        """Return the largest number of tokens of a path, prompt and answer together."""
        ...

    @property
    def gone(self) -> str:
        """Return the reason why the engine can draw no more tokens, or "" while the engine works."""
        ...

    def generate(self, prefix: np.ndarray, params: Params, namespace: str, tree: str) -> AsyncIterator[Draw]:
        """Draw one branch after `prefix` [n] int32.

        `namespace` is the forest whose prefixes may share keys and values. `tree` is the tree in the forest. All
        requests of a tree go to the server that has the prefix of the tree in its cache. When the engine yields a
        token, the prefix that ends with the token is in the cache or will be soon, so the caller may request a sibling
        at once. SGLang shares a prefix only after the end of the request that drew it. The SGLang engine therefore
        draws in chunks and yields the tokens of finished chunks.
        """
        ...

    async def release(self, namespace: str) -> None:
        """Free the resources of a complete forest."""
        ...

    async def update_weights(self, version: int, weights: Weights) -> float:
        """Pause, load the weights, drop the cache of older weights, and continue. Returns the duration in seconds.

        Raises ValueError for a version below the current version.
        """
        ...

    def stats(self) -> EngineStats: ...

    async def close(self) -> None: ...
