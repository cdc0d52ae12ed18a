"""Provides tiny random models of each family, configurations and forests for the tests of the learner."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoModelForCausalLM,
    Glm4MoeConfig,
    LlamaConfig,
    MixtralConfig,
    OlmoeConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from treeadv.config import Config, parse
from treeadv.forest import Forest

VOCAB = 32
_SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "initializer_range": 0.2,
}
FAMILIES: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(
        **_SHAPE, hidden_size=16, num_attention_heads=4, num_key_value_heads=4, tie_word_embeddings=False
    ),
    "smollm": LlamaConfig(
        **_SHAPE, hidden_size=24, num_attention_heads=6, num_key_value_heads=2, tie_word_embeddings=True
    ),
    "qwen2": Qwen2Config(
        **_SHAPE, hidden_size=16, num_attention_heads=4, num_key_value_heads=1, tie_word_embeddings=True
    ),
    "qwen3": Qwen3Config(
        **_SHAPE, hidden_size=16, num_attention_heads=4, num_key_value_heads=2, head_dim=8, tie_word_embeddings=False
    ),
}
_MOE: dict[str, Any] = _SHAPE | {
    "hidden_size": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
}
EXPERTS: dict[str, PretrainedConfig] = {
    "qwen3_moe": Qwen3MoeConfig(**_MOE, num_experts=4, moe_intermediate_size=8, head_dim=8),
    "mixtral": MixtralConfig(**_MOE, num_local_experts=4),
    # SGLang's OLMoE has as many key heads as query heads, like the published models
    "olmoe": OlmoeConfig(**{**_MOE, "num_key_value_heads": 4}, num_experts=4),
    "glm4_moe": Glm4MoeConfig(
        **_MOE, n_routed_experts=4, n_shared_experts=1, moe_intermediate_size=8, head_dim=8, first_k_dense_replace=1
    ),
}


def folder(path: Path, family: str = "llama", seed: int = 0) -> str:
    """Save a random model (wide initial weights, so that log-probs differ) under `path` and return its folder."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config((FAMILIES | EXPERTS)[family], dtype=torch.float32)
    for name, buffer in model.named_buffers():
        # The initial value of this bias is zero, so a test could not detect its loss.
        if name.endswith("e_score_correction_bias"):
            buffer.uniform_(-1, 1)
    out = path / f"{family}-{seed}"
    model.save_pretrained(out)
    Tokenizer(WordLevel({"0": 0}, unk_token="0")).save(str(out / "tokenizer.json"))
    return str(out)


def config(model: str = "tiny", steps: int = 8, **learner: Any) -> Config:
    return parse(
        {
            "run": {"steps": steps},
            "model": {"path": model},
            "task": {"families": [{"name": "chain_sum"}]},
            "learner": {"dtype": "float32", "lr": 1e-3, **learner},
        },
        "test",
    )


def with_behaviour(f: Forest, logp: np.ndarray, spread: float, seed: int) -> Forest:
    """Return the forest with behaviour log-probs `logp` [T] plus noise, so that ratios are on both sides of the
    clip."""
    noise = np.random.default_rng(seed).normal(0.0, spread, f.tokens)
    return dataclasses.replace(f, logprob=np.minimum(logp + noise, 0.0).astype(np.float32)).check()
