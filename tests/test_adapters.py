"""Tests the advantages for flat rollouts in the layouts of other trainers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import forests
from treeadv.adapters import rollout_advantages, token_advantages, trl_batch, verl_batch
from treeadv.forest import Forest
from treeadv.learning.advantage import advantages
from treeadv.presets import build_advantage

DOCUMENT = Path(__file__).parents[1] / "docs" / "library.md"
PRESETS = ("treeadv", "treeadv_per_leaf", "unbiased", "grpo", "flat_on_forest")


def row(prompt: list[int], answer: list[int], reward: float) -> dict[str, Any]:
    return {"prompt_ids": prompt, "completion_ids": answer, "logprobs": [-0.5] * len(answer), "reward": reward}


rows = st.lists(
    st.builds(
        row,
        st.sampled_from([[1], [2, 3]]),
        st.lists(st.integers(0, 2), min_size=1, max_size=5),
        st.sampled_from([0.0, 1.0]),
    ),
    min_size=1,
    max_size=10,
)


@given(forests(), st.sampled_from(PRESETS))
def test_copies_of_a_token_add_up_to_its_weighted_advantage(f: Forest, preset: str) -> None:
    flat, advantage = token_advantages(f, preset), advantages(f, build_advantage(preset))
    index, total = f.to_flat().index, np.zeros(f.tokens)
    np.add.at(total, index[index >= 0], flat[index >= 0])
    np.testing.assert_allclose(total, np.repeat(advantage[0] * advantage[1], f.lengths), atol=1e-9)


@given(rows, st.permutations(range(10)))
def test_advantages_follow_the_order_of_the_rows(given: list[dict[str, Any]], order: list[int]) -> None:
    order = [i for i in order if i < len(given)]
    expected = rollout_advantages(given)
    np.testing.assert_allclose(rollout_advantages([given[i] for i in order]), expected[order], atol=1e-6)


@given(rows)
def test_flat_form_has_the_tokens_of_every_rollout(given: list[dict[str, Any]]) -> None:
    found = [tuple(f.token[path].tolist()) for f in Forest.from_dicts(given) for path in f.to_flat().paths]
    assert sorted(found) == sorted(tuple(r["completion_ids"]) for r in given)


@given(rows)
def test_grpo_gives_each_token_the_normalised_reward_of_its_row(given: list[dict[str, Any]]) -> None:
    out = rollout_advantages(given, "treeadv_per_leaf")
    for i, r in enumerate(given):
        group = [x["reward"] for x in given if x["prompt_ids"] == r["prompt_ids"]]
        if len(set(group)) == 1:
            assert not out[i].any()
        last = out[i, len(r["completion_ids"]) - 1]
        assert np.sign(last) == np.sign(r["reward"] - np.mean(group))


@pytest.mark.parametrize("missing", ["prompt_ids", "completion_ids", "logprobs", "reward"])
def test_row_without_a_key_is_named(missing: str) -> None:
    given = [row([1], [5], 1.0), row([1], [6], 0.0)]
    del given[1][missing]
    with pytest.raises(ValueError, match=f"row 1 has no {missing}"):
        rollout_advantages(given)


def test_log_probabilities_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="logprobs needs one entry for each token"):
        Forest.from_dicts([row([1], [5], 1.0) | {"logprobs": []}])


def test_trl_batch_pads_prompts_left_and_answers_right() -> None:
    batch = trl_batch([row([1, 2], [5], 1.0), row([3], [6, 7], 0.0)], pad=9)
    assert batch["prompt_ids"].tolist() == [[1, 2], [9, 3]]
    assert batch["prompt_mask"].tolist() == [[1, 1], [0, 1]]
    assert batch["completion_ids"].tolist() == [[5, 9], [6, 7]]
    assert batch["completion_mask"].tolist() == [[1, 0], [1, 1]]


def test_verl_batch_counts_positions_from_the_first_real_token() -> None:
    batch = verl_batch([row([1, 2], [5], 1.0), row([3], [6, 7], 0.0)], pad=9)
    assert batch["position_ids"].tolist() == [[0, 1, 2, 2], [0, 0, 1, 2]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [0, 1, 1, 1]]


def test_blocks_of_the_document_run(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.S)
    assert len(blocks) >= 4
    exec(compile("\n".join(blocks), str(DOCUMENT), "exec"), {})


@given(forests())
def test_forests_compare_by_value(f: Forest) -> None:
    same = Forest(**{name: getattr(f, name) for name in f.__dataclass_fields__})
    assert f == same
    assert f != Forest(**{name: getattr(f, name) for name in f.__dataclass_fields__} | {"gold": f.gold + "x"})
    assert f"{f.leaves} leaves" in repr(f)
