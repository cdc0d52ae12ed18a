"""Tests mixtures of experts on the real SGLang. A server with the weights that a learner publishes must report the
learner's log-probs."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.engines.conftest import Run, start_server
from tests.engines.helpers import branch, configure, params
from tests.learning import tiny
from tests.learning.test_families import trained
from tests.learning.test_trainer import weights_of
from treeadv.engines.base import Draw
from treeadv.engines.sglang.engine import SGLangEngine
from treeadv.learning.trainer import Trainer

pytestmark = [
    pytest.mark.sglang,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("sglang") is None, reason="SGLang is not installed (make sglang-cpu)"),
]
PREFIX = np.array([3, 7, 11, 2, 9, 4], np.int32)


def differences(trainer: Trainer, draws: list[Draw]) -> np.ndarray:
    """Return [T]: the log-prob that the engine reports for each draw, minus the log-prob of the learner."""
    tokens = torch.tensor([d.token for d in draws])
    ids = torch.cat([torch.from_numpy(PREFIX).long(), tokens])[None]
    with torch.no_grad():
        logp = trainer.policy.model(input_ids=ids).logits[0, len(PREFIX) - 1 : -1].log_softmax(-1)
    return np.array([d.logprob for d in draws]) - logp[torch.arange(len(tokens)), tokens].numpy()


@pytest.mark.parametrize("family", tiny.EXPERTS)
def test_server_has_the_log_probs_of_the_learner(family: str, run: Run, tiny_model: Path, tmp_path: Path) -> None:
    """One server per family loads the weights of a learner without an adapter and of a learner with one."""
    folder = Path(tiny.folder(tmp_path, family))
    for name in ("tokenizer.json", "tokenizer_config.json"):  # the server reads a tokenizer when it starts
        shutil.copy(tiny_model / name, folder)
    process = run(start_server(folder, tmp_path / "log"))
    engine = run(SGLangEngine.create(configure(process.url, root=tmp_path, weights="tensor"), folder, 0))
    try:
        for version, lora_rank in ((1, 0), (2, 2)):
            trainer = trained(str(folder), lora_rank=lora_rank)
            run(engine.update_weights(version, weights_of(trainer)))
            draws = run(branch(engine, PREFIX, params(24, temperature=1.0)))
            assert {d.version for d in draws} == {version} and len({d.token for d in draws}) > 4
            assert np.abs(differences(trainer, draws)).max() < 1e-4
            others = Trainer(tiny.config(), str(folder))
            assert np.abs(differences(others, draws)).max() > 1e-2  # the step changed the weights
    finally:
        run(engine.close())
        run(process.stop())
