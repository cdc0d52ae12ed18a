"""Tests the reward role. It must return the same forests with grades, and export metrics of its work."""

from __future__ import annotations

import urllib.request
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from actors.reward import RewardActor
from tests.strategies import build
from treeadv import wire
from treeadv.config import parse
from treeadv.errors import BadInput
from treeadv.forest import Finish, Verdict
from treeadv.rewards.verifiers.weighted import sum_name

WORDS = ["<|end|>", "The", "answer", "is", "11", "12", "or"]


@pytest.fixture
def model_dir(tmp_path):
    tokenizer = Tokenizer(WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="or"))
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(f'{{"model_type": "llama", "eos_token_id": {len(WORDS)}}}')
    save_file({}, tmp_path / "model.safetensors")  # no test reads a weight
    return str(tmp_path)


def config(model_dir):
    return parse({"model": {"path": model_dir}, "task": {"source": "x.jsonl"}}, "test")


def forest(name: str):
    """Return a forest of two trees. The first root segment is "The answer is", with the leaves "11 end" and "12" and an
    aborted leaf "11". The second tree ends with "or"."""
    made = build([-1, 0, 0, 0, -1], [3, 2, 1, 1, 1], forest_id=name)
    tokens = [WORDS.index(w) for w in ["The", "answer", "is", "11", "<|end|>", "12", "11", "or"]]
    finish = np.array([Finish.STOP, Finish.LENGTH, Finish.ABORT, Finish.STOP], np.int8)
    leaves = made.leaves
    return replace(
        made, token=np.array(tokens, np.int32), finish=finish, gold="11", verifier="math",
        reward=np.full(leaves, np.nan, np.float32), verdict=np.full(leaves, Verdict.UNGRADED, np.int8),
    ).check()  # fmt: skip


def test_graded_batch_is_otherwise_unchanged(loop, model_dir):
    async def scene():
        actor = RewardActor(config(model_dir), 0)
        try:
            batch, report = await actor.grade(wire.to_batch([forest("a"), forest("a")]))
            with urllib.request.urlopen(f"http://{await actor.address()}/metrics") as page:
                return wire.from_batch(batch), report, page.read().decode()
        finally:
            await actor.close()

    graded, report, page = loop.run(scene())
    verdicts = (Verdict.VERIFIED, Verdict.WRONG, Verdict.ABORTED, Verdict.UNPARSED)
    assert (report.verdicts, report.failure) == (verdicts * 2, "")
    assert [f.forest_id for f in graded] == ["a", "a"]
    for f in graded:
        assert f.verdict.tolist() == [Verdict.VERIFIED, Verdict.WRONG, Verdict.ABORTED, Verdict.UNPARSED]
        assert f.reward.tolist() == [1.0, 0.0, 0.0, 0.0]
        assert f.detail == ("same text", "not equal", "the engine lost this branch", "no answer found")
        assert f.token.tolist() == forest("a").token.tolist() and f.gold == "11"
    assert 'treeadv_rewards_total{verdict="verified"} 2.0' in page
    assert 'treeadv_rewards_total{verdict="unparsed"} 2.0' in page  # an aborted leaf is not an answer
    assert "treeadv_reward_seconds_count 6.0" in page
    assert "treeadv_reward_waiting_answers 0.0" in page


def test_named_parts_of_a_reward_become_metrics(loop, model_dir):
    async def scene():
        actor = RewardActor(config(model_dir), 0)
        try:
            summed = replace(forest("a"), verifier=sum_name([("math", 1.0), ("exact", 0.5)]))
            batch, _ = await actor.grade(wire.to_batch([summed]))
            with urllib.request.urlopen(f"http://{await actor.address()}/metrics") as page:
                return wire.from_batch(batch)[0], page.read().decode()
        finally:
            await actor.close()

    graded, page = loop.run(scene())
    assert graded.reward.tolist() == [1.5, 0.0, 0.0, 0.0]
    assert 'treeadv_reward_part_mean{part="math"} 0.333' in page  # the mean is over the three judged answers
    assert 'treeadv_reward_part_mean{part="exact"} 0.333' in page


def test_model_without_a_tokenizer_is_bad_input(tmp_path):
    with pytest.raises(BadInput, match=r"the folder has no config.json"):
        RewardActor(config(str(tmp_path)), 0)
