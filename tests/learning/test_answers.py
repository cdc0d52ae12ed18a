"""Tests the figures of the answers in a batch against their definition, leaf by leaf."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import build
from treeadv.forest import UNJUDGED, Finish, Forest, Verdict
from treeadv.learning.answers import FAMILIES, OTHER, answer_figures, family_of


def forest(prompt_id: str, verdicts: list[int], rewards: list[float], finish: list[int]) -> Forest:
    """Return a forest of two trees with two leaves each. The leaves have 5, 3, 4 and 4 tokens."""
    made = build([-1, 0, 0, -1, 3, 3], [2, 3, 1, 2, 2, 2], rewards=rewards)
    return replace(made, prompt_id=prompt_id, verdict=np.asarray(verdicts, np.int8), finish=np.asarray(finish, np.int8))


JUDGED = [v for v in Verdict if v not in UNJUDGED]
ENDS = st.sampled_from([Finish.STOP, Finish.LENGTH])
leaf = st.one_of(
    st.tuples(
        st.sampled_from([v for v in Verdict if v not in UNJUDGED]), st.sampled_from([Finish.STOP, Finish.LENGTH])
    ),
    st.tuples(st.sampled_from([Verdict.TIMEOUT, Verdict.CRASH]), ENDS),
    st.just((Verdict.ABORTED, Finish.ABORT)),
)


@st.composite
def batches(draw: st.DrawFn) -> list[Forest]:
    made = []
    for n in range(draw(st.integers(1, 4))):
        leaves = [(Verdict.WRONG, Finish.STOP), *draw(st.lists(leaf, min_size=3, max_size=3))]
        rewards = draw(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=4, max_size=4))
        family = draw(st.sampled_from(["gcd", "chain_sum"]))
        made.append(forest(f"{family}-0-{n}", [v for v, _ in leaves], rewards, [f for _, f in leaves]))
    return made


@given(batches())
def test_figures_equal_their_definition_leaf_by_leaf(batch: list[Forest]) -> None:
    lengths, by_verdict, by_family, cut, mixed = [], defaultdict(list), defaultdict(list), [], []
    for f in batch:
        judged = set()
        for i in range(f.leaves):
            verdict, finish = Verdict(int(f.verdict[i])), Finish(int(f.finish[i]))
            if finish != Finish.ABORT:
                lengths.append(len(f.leaf_tokens(i)))
                by_verdict[verdict.name.lower()].append(len(f.leaf_tokens(i)))
                cut.append(finish == Finish.LENGTH)
            if verdict not in UNJUDGED:
                by_family[f.prompt_id.split("-")[0]].append(float(f.reward[i]))
                judged.add(verdict == Verdict.VERIFIED)
        mixed.append(len(judged) == 2)
    found = answer_figures(batch)
    assert found.answer_tokens == pytest.approx(fmean(lengths))
    assert found.answer_tokens_by_verdict == pytest.approx({k: fmean(v) for k, v in by_verdict.items()})
    assert found.truncated == pytest.approx(fmean(cut)) and found.mixed == pytest.approx(fmean(mixed))
    assert found.reward_by_family == pytest.approx({k: fmean(v) for k, v in by_family.items()})


def test_rare_families_share_one_name() -> None:
    batch = [forest(f"f{n}x-1", [1] * 4, [float(n > FAMILIES - 2)] * 4, [0] * 4) for n in range(FAMILIES + 4)]
    batch += [forest("f0x-2", [1] * 4, [0.0] * 4, [0] * 4)]
    found = answer_figures(batch).reward_by_family
    assert len(found) == FAMILIES + 1 and "f0x" in found
    rare = [n for n in range(FAMILIES + 4) if f"f{n}x" not in found]
    assert found[OTHER] == pytest.approx(fmean(float(n > FAMILIES - 2) for n in rare))


@pytest.mark.parametrize(
    ("prompt_id", "family"),
    [
        ("chain_sum-0-17", "chain_sum"), ("gsm8k_train-5", "gsm8k_train"), ("tables-held-out-3-9", "tables-held-out"),
        ("owner/name-12", "owner/name"), ("", OTHER), ("123", OTHER), ("7-8", OTHER), ("algebra", "algebra"),
    ],
)  # fmt: skip
def test_family_is_the_id_without_numbers_at_its_end(prompt_id: str, family: str) -> None:
    assert family_of(prompt_id) == family
