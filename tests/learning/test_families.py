"""Tests that published weights and checkpoints of every model family keep the values and names of the model's
folder."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from tests.learning import tiny
from tests.learning.test_trainer import FORESTS, weights_of
from treeadv.engines.base import Params
from treeadv.engines.embedded import EmbeddedEngine
from treeadv.learning.loading import load
from treeadv.learning.trainer import Trainer

FAMILIES = [*tiny.FAMILIES, *tiny.EXPERTS]
IDS = torch.tensor([[3, 7, 11, 2, 9, 4]])


def names_in(folder: str | Path) -> set[str]:
    """Return the names of all tensors in a folder."""
    names: set[str] = set()
    for path in Path(folder).glob("*.safetensors"):
        with safe_open(path, "pt") as content:
            names |= set(content.keys())
    return names


def trained(folder: str, **learner: object) -> Trainer:
    """Return a trainer after one step that changes the weights strongly."""
    trainer = Trainer(tiny.config(lr=0.05, **learner), folder)
    trainer.step(FORESTS, 0)
    return trainer


def flat_log_probs(trainer: Trainer) -> torch.Tensor:
    with torch.no_grad():
        return trainer.policy.model(input_ids=IDS).logits.log_softmax(-1)


@pytest.mark.parametrize("family", FAMILIES)
def test_loaded_model_equals_from_pretrained(family: str, tmp_path: Path) -> None:
    folder = tiny.folder(tmp_path, family)
    theirs = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        torch.testing.assert_close(load(folder).model(input_ids=IDS).logits, theirs(IDS).logits, atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module", params=[(family, rank) for family in FAMILIES for rank in (0, 2)], ids=str)
def learner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Trainer]:
    """Return a model folder of each family, and its trainer after one step. The trainer trains all weights or an
    adapter."""
    family, rank = request.param
    folder = tiny.folder(tmp_path_factory.mktemp("model"), family)
    return folder, trained(folder, lora_rank=rank)


def test_checkpoint_keeps_names_and_logits(learner: tuple[str, Trainer], tmp_path: Path) -> None:
    folder, trainer = learner
    trainer.save(tmp_path / "step-1")
    assert names_in(tmp_path / "step-1") == names_in(folder)
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "step-1").eval()
    before = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        after, start = read(IDS).logits.log_softmax(-1), before(IDS).logits.log_softmax(-1)
    ours = flat_log_probs(trainer)
    assert (after - ours).abs().max() < 1e-5
    assert (start - ours).abs().max() > 1e-2  # the step changed the weights


def test_published_weights_give_the_log_probs_of_the_learner(learner: tuple[str, Trainer]) -> None:
    folder, trainer = learner
    published = weights_of(trainer)
    assert published.keys() == names_in(folder)

    async def draw() -> list[tuple[int, float]]:
        engine = EmbeddedEngine(folder)
        try:
            await engine.update_weights(1, published)
            params = Params(temperature=1.0, max_tokens=8, stop=frozenset(), seed=0)
            return [(d.token, d.logprob) async for d in engine.generate(IDS[0].numpy(), params, "a", "b")]
        finally:
            await engine.close()

    drawn = asyncio.run(draw())
    ids = torch.cat([IDS[0], torch.tensor([token for token, _ in drawn])])[None]
    with torch.no_grad():
        logp = trainer.policy.model(input_ids=ids).logits[0, IDS.shape[1] - 1 : -1].log_softmax(-1)
    expected = logp[torch.arange(len(drawn)), ids[0, IDS.shape[1] :]]
    np.testing.assert_allclose([x for _, x in drawn], expected.numpy(), atol=1e-5)
