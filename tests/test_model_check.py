"""Tests which models the engine and the learner accept and refuse, and the longest path of each accepted model."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3NextConfig,
)

from treeadv.config import Config, SamplingConfig, build
from treeadv.data.model_check import longest_path
from treeadv.data.problems import Problem
from treeadv.engines.base import PathTooLong
from treeadv.engines.embedded import EmbeddedEngine
from treeadv.engines.registry import start_engine
from treeadv.errors import BadInput
from treeadv.learning import loading
from treeadv.local.rollouts import rollouts
from treeadv.sampling.request import GrowRequest
from treeadv.sampling.sampler import grow

SHAPE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 128}


def saved(folder: Path, config: PretrainedConfig) -> Path:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def embedded(folder: Path) -> EmbeddedEngine:
    config: Config = build({"task": {"source": "none.jsonl"}}, ["generator.threads=1"], "test")
    engine = asyncio.run(start_engine(config, folder))
    assert isinstance(engine, EmbeddedEngine)
    return engine


@pytest.mark.parametrize(
    ("config", "longest"),
    [
        (LlamaConfig(**SHAPE), 512),
        (MistralConfig(**SHAPE, sliding_window=48), 48),
        (MistralConfig(**SHAPE, sliding_window=None), 512),
        (Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=40, max_window_layers=0), 40),
        (Qwen2Config(**SHAPE, sliding_window=40), 512),
        (LlamaConfig(**SHAPE, rope_parameters=DYNAMIC), 128),
    ],
)
def test_path_length_is_limited_by_window_and_rotary_context(config: PretrainedConfig, longest: int, tmp_path: Path):
    """Up to this length, engine and learner agree with the model's own attention. The checks at the start of a run
    compare them."""
    folder = saved(tmp_path, config)
    assert longest_path(folder) == longest
    engine = embedded(folder)
    assert engine.longest == longest
    assert engine.difference() < 1e-3
    loading.load(folder)


def test_log_probs_differ_beyond_the_window(tmp_path: Path):
    engine = embedded(saved(tmp_path, MistralConfig(**SHAPE, sliding_window=48)))
    engine.longest = 512
    assert engine.difference() > 1e-3


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (Gemma2Config(**SHAPE), "attn_logit_softcapping=50.0, which is not supported"),
        (Gemma2Config(**SHAPE, attn_logit_softcapping=None), "final_logit_softcapping=30.0"),
        (CohereConfig(**{k: v for k, v in SHAPE.items() if k != "head_dim"}), "logit_scale=0.0625"),
        (
            Qwen3NextConfig(**SHAPE, num_experts=2),
            "Qwen3Next.* has layers with linear_attention, which cannot attend to a tree",
        ),
        (
            GptOssConfig(**SHAPE, num_local_experts=2, num_experts_per_tok=1, sliding_window=128),
            "uses s_aux, which is not supported",
        ),
    ],
)
def test_model_with_other_terms_is_refused_by_engine_and_learner(config: PretrainedConfig, reason: str, tmp_path: Path):
    folder = saved(tmp_path, config)
    for start in (embedded, loading.load):
        with pytest.raises(BadInput, match=reason):
            start(folder)


def test_prompt_that_leaves_no_room_is_refused_before_drawing(tiny_model: Path):
    engine = EmbeddedEngine(tiny_model)
    request = GrowRequest(
        forest_id="f",
        problem=Problem(id="long", problem="", answer="", verifier="exact", meta=""),
        prompt=np.full(1985, 5, np.int32),
        seed=0,
    )
    with pytest.raises(
        PathTooLong, match=r"prompt long has 1985 tokens: with sampling.max_tokens=64 .* than the 2048 tokens"
    ):
        asyncio.run(grow(engine, request, SamplingConfig(), 1.0, frozenset()))


def test_file_with_too_long_prompts_is_refused_with_a_count(tiny_model: Path):
    config = build({"task": {"source": "none.jsonl"}}, ["sampling.max_tokens=2040", "generator.threads=1"], "test")
    problems = [
        Problem(id=f"p{i}", problem="1" * length, answer="", verifier="exact", meta="")
        for i, length in enumerate((4, 40, 50))
    ]
    with pytest.raises(BadInput, match=r"2 of 3 prompts cannot be used; the first: the prompt of p1 has 40 tokens"):
        asyncio.run(rollouts(config, tiny_model, problems, lambda forest: None))
