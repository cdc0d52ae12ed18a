"""Computes the memory of each role, and the bytes that a step sends. docs/planning.md has the formulas."""

from __future__ import annotations

import math
from dataclasses import dataclass

from treeadv.config import Config
from treeadv.learning.objective import build_objective
from treeadv.planning.sizes import ModelSizes, head_bytes

_BYTES = {"float32": 4, "bfloat16": 2}
_TOKEN_BYTES = 24  # size of a token in a forest: id, log-prob, entropy, version and their offsets


@dataclass(frozen=True, kw_only=True)
class Role:
    """The memory of one member of a role in bytes, by purpose."""

    name: str
    count: int
    gpus: float  # GPUs of one member; 0: the member uses memory of the host
    items: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.items.values())


def learner(config: Config, sizes: ModelSizes, tokens: int) -> Role:
    """Return the memory of one learner rank at the peak of a step. `tokens` is the number of rows of a micro-batch."""
    c = config.learner
    shards = c.count // c.replicas
    half = c.dtype == "bfloat16"
    items = {
        "weights": 4 * sizes.parameters // shards,
        "gradients": 4 * sizes.trained // (1 if c.accumulate == "whole" else shards),
        "optimizer": 8 * sizes.trained // shards,
        "activations": sizes.activations + (sizes.layer_activations if c.checkpoint_activations else 0),
        "logits": head_bytes(sizes, tokens),
    }
    if c.kl:
        items["reference"] = 4 * sizes.parameters // shards
    if c.count > 1:  # two gathered layers, the gradients of one, and the float32 buffer of their reduction
        items["gathered layers"] = (3 * _BYTES[c.dtype] + 4) * sizes.layer
        items["embedding and head"] = 2 * 4 * sizes.outside
    elif half:
        items["bfloat16 copies"] = 2 * sizes.parameters
    return Role(name="learner", count=c.count, gpus=c.gpus, items=items)


def generator(config: Config, sizes: ModelSizes, device: int) -> Role:
    """Return the memory of a generator.

    With a GPU of `device` bytes it is the pool that the server reserves. Without a GPU it is the memory on the host."""
    g = config.generator
    width = _BYTES[g.dtype]
    weights = width * sizes.parameters
    if not g.gpus:
        cache = g.forests * tokens_of_forest(config) * sizes.cache_elements * width
        return Role(name="generator", count=g.count, gpus=0, items={"weights": weights, "keys and values": cache})
    parts = max(1, math.ceil(g.gpus))  # the number of GPUs that share the model by tensor parallelism
    pool = int(float(g.sglang.args.get("mem-fraction-static", 0.85)) * device)
    cache = max(cache_of_forest(config, sizes), parts * pool - weights)
    items = {"weights": weights // parts, "keys and values": cache // parts}
    return Role(name="generator", count=g.count, gpus=g.gpus, items=items)


def tokens_of_forest(config: Config) -> int:
    """Return the largest number of tokens of a forest. A forest has this number if its leaves share no token."""
    return config.sampling.leaves * config.sampling.max_tokens


def cache_of_forest(config: Config, sizes: ModelSizes) -> int:
    """Return the bytes of keys and values of the largest forest. A generator needs at least these bytes."""
    return tokens_of_forest(config) * sizes.cache_elements * _BYTES[config.generator.dtype]


def object_store_role(config: Config, sizes: ModelSizes) -> Role:
    """Return the memory of all object stores together.

    They hold two versions of the weights, and the forests that the staleness bound allows."""
    forests = (config.queue.max_staleness + 1) * config.learner.forests_per_step
    items = {
        "weights": 2 * _BYTES[config.generator.dtype] * sizes.parameters,
        "forests": forests * tokens_of_forest(config) * _TOKEN_BYTES,
    }
    return Role(name="object store", count=1, gpus=0, items=items)


def microbatches(config: Config, tokens: int) -> int:
    """Return the number of micro-batches of a rank for one pass over a batch without shared tokens.

    A micro-batch has at most `tokens` rows."""
    c = config.learner
    update = c.forests_per_step * tokens_of_forest(config) / c.updates_per_batch
    return c.updates_per_batch * max(1, math.ceil(update / (tokens * c.count)))


def _forward_passes(config: Config, tokens: int) -> int:
    """Return the number of passes over one mini-batch in a step that have no backward pass.

    These passes compute the proximal policy of all updates except the first, the log-probs of the reference, and the
    path ratios of forests that are cut."""
    c, objective = config.learner, build_objective(config.learner, config.sampling)
    passes = (c.updates_per_batch - 1) + (c.updates_per_step if c.kl else 0)
    if tokens_of_forest(config) > tokens:
        passes += sum(objective.needs_path(proximal_known=n > 0) for n in range(c.updates_per_step))
    return passes


def network(config: Config, sizes: ModelSizes, tokens: int) -> dict[str, int]:
    """Return the largest number of bytes that one step sends, by purpose.

    The bytes are received by one learner rank, or by all generators together."""
    c = config.learner
    shards = c.count // c.replicas
    away = (shards - 1) / shards  # the share of a layer on other ranks
    trained = c.passes_per_batch * microbatches(config, tokens)
    layers, width = sizes.parameters - sizes.outside, _BYTES[c.dtype]
    # Embedding and head stay gathered from a forward pass to its backward pass. A pass without a backward pass gathers
    # them once.
    both, forward = 2 * width * layers + 4 * sizes.outside, width * layers * microbatches(config, tokens)
    forward_only = _forward_passes(config, tokens) * (forward / c.updates_per_batch + 4 * sizes.outside)
    reductions = c.updates_per_step if c.accumulate == "whole" else trained
    return {
        "gathered weights, a rank": int(away * (trained * both + forward_only)),
        "reduced gradients, a rank": int(reductions * away * 4 * sizes.trained)
        + int(8 * sizes.trained / shards * (c.replicas - 1) / c.replicas) * reductions,
        "gathered for publication, a rank": int(away * 4 * sizes.parameters),
        "published weights, all generators": config.generator.count * _BYTES[config.generator.dtype] * sizes.parameters,
        "forests": c.forests_per_step * tokens_of_forest(config) * _TOKEN_BYTES,
    }
