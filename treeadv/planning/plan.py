"""Plans a recipe: the memory of each role, the roles that do not fit, and options that help."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from treeadv.config import Config, LearnerConfig
from treeadv.planning import roles
from treeadv.planning.roles import Role
from treeadv.planning.sizes import ModelSizes, model_sizes

GB = 10**9


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The roles of a run and the network bytes of a step. `faults` has a line for each role that does not fit."""

    sizes: ModelSizes
    members: tuple[Role, ...]
    microbatches: int  # micro-batches of a learner rank in one pass over a batch
    network: dict[str, int]
    faults: tuple[str, ...]


def make_plan(config: Config, config_json: Path, device: int, host: int) -> Plan:
    """Plan a run of `config` with the model of `config_json`. A GPU has `device` bytes, and a host has `host` bytes."""
    sizes = _sizes(config.learner, config_json)
    tokens = config.learner.tokens_per_microbatch
    learner, generator = roles.learner(config, sizes, tokens), roles.generator(config, sizes, device)
    members = (learner, generator, roles.object_store_role(config, sizes))
    faults = []
    for role in members:
        room = device * min(role.gpus, 1.0) if role.gpus else host
        if role.total > room:
            fault = f"{role.name} needs {role.total / GB:.1f} GB and has {room / GB:.1f} GB"
            helps = _helpful(config, config_json, room) if role is learner else _HELP[role.name]
            faults.append(f"{fault}; {helps}")
    batches, network = roles.microbatches(config, tokens), roles.network(config, sizes, tokens)
    return Plan(sizes=sizes, members=members, microbatches=batches, network=network, faults=tuple(faults))


_HELP = {
    "generator": "set generator.dtype=bfloat16, fewer generator.forests, or more GPUs for a generator",
    "object store": "lower queue.max_staleness or learner.forests_per_step, or set generator.dtype=bfloat16",
}


def _sizes(learner: LearnerConfig, config_json: Path) -> ModelSizes:
    return model_sizes(
        config_json,
        tokens=learner.tokens_per_microbatch,
        compute=torch.bfloat16 if learner.dtype == "bfloat16" else torch.float32,
        recompute=learner.checkpoint_activations,
        lora_rank=learner.lora_rank,
    )


def _helpful(config: Config, config_json: Path, room: float) -> str:
    """Return a text that lists each option that makes the learner fit, or else the option that saves most."""
    tried: list[tuple[int, str]] = []
    for text, change in _options(config.learner):
        learner = config.learner.model_copy(update=change)
        sizes = _sizes(learner, config_json)
        other = config.model_copy(update={"learner": learner})
        tried.append((roles.learner(other, sizes, learner.tokens_per_microbatch).total, text))
    fitting = [f"{text} ({total / GB:.1f} GB)" for total, text in tried if total <= room]
    if fitting:
        return "one of these makes it fit: " + ", ".join(fitting)
    total, text = min(tried)
    return f"no single option makes it fit; {text} saves most ({total / GB:.1f} GB)"


def _options(c: LearnerConfig) -> Iterator[tuple[str, dict[str, object]]]:
    if not c.checkpoint_activations:
        yield "learner.checkpoint_activations=true", {"checkpoint_activations": True}
    if c.accumulate == "whole":
        yield "learner.accumulate=sharded", {"accumulate": "sharded"}
    if c.replicas > 1:
        yield "learner.replicas=1", {"replicas": 1}
    half = c.tokens_per_microbatch // 2
    yield f"learner.tokens_per_microbatch={half}", {"tokens_per_microbatch": half}
    yield f"learner.count={2 * c.count}", {"count": 2 * c.count}
    if not c.lora_rank:
        yield "learner.lora_rank=32", {"lora_rank": 32}


def render(plan: Plan) -> str:
    """Return the plan as text."""
    s = plan.sizes
    lines = [f"model: {s.parameters / 1e9:.2f} billion parameters, {s.trained / 1e9:.2f} trained", ""]
    for role in plan.members:
        where = f"{min(role.gpus, 1.0):g} GPU" if role.gpus else "host"
        lines.append(f"{role.name} x {role.count}: {role.total / GB:.1f} GB on {where}")
        lines += [f"  {name:<20} {size / GB:8.2f} GB" for name, size in role.items.items()]
    lines += ["", f"network, at most, in one step ({plan.microbatches} micro-batches a rank, which gather all layers):"]
    lines += [f"  {name:<36} {size / GB:8.1f} GB" for name, size in plan.network.items()]
    lines += ["", *(f"does not fit: {fault}" for fault in plan.faults)] if plan.faults else ["", "everything fits"]
    return "\n".join(lines)
