"""Tests that pass@k equals its definition and counts the verdicts of the verifier."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import build
from treeadv.config import parse
from treeadv.forest import Finish, Forest, Verdict
from treeadv.local.evaluation import evaluate, independent, pass_at_k


@given(n=st.integers(1, 7), data=st.data())
def test_pass_at_k_is_the_mean_over_all_choices_of_k_samples(n: int, data: st.DataObject) -> None:
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    choices = list(combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, choices)) / len(choices))


def test_pass_at_k_is_unbiased_for_independent_samples() -> None:
    p, n, k = 0.3, 8, 4
    c = np.random.default_rng(0).binomial(n, p, 40_000)
    assert np.mean([pass_at_k(n, int(x), k) for x in c]) == pytest.approx(1 - (1 - p) ** k, abs=0.005)


def graded(verdicts: list[Verdict], finish: list[Finish]) -> Forest:
    n = len(verdicts)
    forest = build([-1] * n, [3] * n, rewards=[float(v == Verdict.VERIFIED) for v in verdicts])
    return replace(forest, verdict=np.array(verdicts, np.int8), finish=np.array(finish, np.int8))


def test_only_verified_leaves_pass() -> None:
    v, w, t = Verdict.VERIFIED, Verdict.WRONG, Verdict.TIMEOUT
    result = evaluate(
        [
            graded([v, v, w, t], [Finish.STOP] * 4),
            graded([w, w, w, w], [Finish.LENGTH, Finish.STOP, Finish.STOP, Finish.STOP]),
        ]
    )
    assert result.pass_at == {1: 0.25, 2: pytest.approx((1 - 1 / 6) / 2), 4: 0.5}
    assert result.verdicts == {"wrong": 5, "verified": 2, "timeout": 1}
    assert (result.problems, result.samples, result.tokens, result.tokens_mean, result.cut) == (2, 4, 24, 3.0, 0.125)
    assert result.pass_1_error == pytest.approx(0.25 / 2**0.5)


def test_evaluation_samples_share_no_token() -> None:
    config = parse({"task": {"source": "x.jsonl"}, "sampling": {"leaves": 16, "trees": 4, "temperature": 0.5}}, "test")
    sampling = independent(config, 5).sampling
    assert (sampling.rule, sampling.leaves, sampling.roots, sampling.temperature) == ("none", 5, 5, 0.5)
