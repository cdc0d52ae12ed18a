"""Tests the selection of an engine by name, and the refusals before an engine starts."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from treeadv.config import Config, build
from treeadv.engines.embedded import EmbeddedEngine
from treeadv.engines.registry import ENGINES, check_engine, start_engine
from treeadv.errors import BadInput


def configured(*overrides: str) -> Config:
    return build({"task": {"source": "none.jsonl"}}, list(overrides), "test")


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("generator.engine=sglan", "generator.engine=sglan is unknown, did you mean sglang"),
        ("generator.engine=no_such_module:Engine", "module no_such_module cannot be imported"),
        ("generator.engine=treeadv.config:Engine", "module treeadv.config has no Engine"),
        ("generator.engine=treeadv.config:Config", "is not an engine: it lacks check, cuda_option, create, generate"),
        ("generator.gpus=1", "generator.gpus=1: the embedded engine runs on the CPU"),
    ],
)
def test_engine_that_cannot_serve_is_refused(override: str, reason: str) -> None:
    with pytest.raises(BadInput, match=reason):
        check_engine(configured(override))


def test_top_p_below_1_is_refused_for_every_engine() -> None:
    for name in ENGINES:
        with pytest.raises(BadInput, match=r"sampling.top_p=0.9: .* leave it at 1"):
            configured(f"generator.engine={name}", "sampling.top_p=0.9")


def test_engine_of_another_module_is_started(tiny_model: Path) -> None:
    config = configured("generator.engine=treeadv.engines.embedded:EmbeddedEngine", "generator.threads=1")

    async def started() -> object:
        engine = await start_engine(config, tiny_model)
        await engine.close()
        return engine

    assert isinstance(asyncio.run(started()), EmbeddedEngine)
