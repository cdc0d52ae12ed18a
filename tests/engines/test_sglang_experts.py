"""SGLang takes the weights of a mixture of experts under the names that the learner publishes."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

from tests.engines.conftest import Run, start_server
from tests.engines.helpers import Plain, branch, configure, params
from tests.learning import tiny
from tests.learning.test_trainer import FORESTS, weights_of
from treeadv.learning.trainer import Trainer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.sglang,
    pytest.mark.skipif(importlib.util.find_spec("sglang") is None, reason="SGLang is not installed (make sglang-cpu)"),
]
PROMPT = np.arange(3, 20, dtype=np.int32)


def experts(folder: Path, tokenizer: Path) -> Path:
    """Save a random Qwen3-MoE with the tokenizer of another model."""
    shutil.copytree(tokenizer, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=97, hidden_size=64, intermediate_size=64, moe_intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, num_experts=8, num_experts_per_tok=2,
        max_position_embeddings=2048, eos_token_id=0, pad_token_id=1, bos_token_id=None, initializer_range=0.2,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("way", ["disk", "tensor"])
def test_published_experts_give_the_log_probs_of_the_learner(
    way: str, run: Run, tiny_model: Path, tmp_path: Path
) -> None:
    from treeadv.engines.sglang.engine import SGLangEngine

    model = experts(tmp_path / "model", tiny_model)
    trainer = Trainer(tiny.config(lr=0.02), str(model))
    trainer.step(FORESTS, 0)
    trainer.save(tmp_path / "step-1")
    server = run(start_server(model, tmp_path / "log"))
    engine = run(SGLangEngine.create(configure(server.url, root=tmp_path, weights=way), model, 0))
    try:
        run(engine.update_weights(1, weights_of(trainer)))
        draws = run(branch(engine, PROMPT, params(24, temperature=2.0)))
        assert {d.version for d in draws} == {1}
        assert max(Plain(tmp_path / "step-1").differences(PROMPT, draws, temperature=2.0)) < 1e-3
        assert max(Plain(model).differences(PROMPT, draws, temperature=2.0)) > 1e-2  # the step moved the weights
    finally:
        run(engine.close())
        run(server.stop())
