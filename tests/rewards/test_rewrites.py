"""Limits false positives and false negatives on rewrites of gold answers of benchmarks
(TREEADV_DATA/benchmarks/*.jsonl), for each kind of rewrite.

`pytest -m slow -s tests/rewards/test_rewrites.py` prints the rates with those of bare math-verify.
"""

from __future__ import annotations

import contextlib
import logging
import random
from dataclasses import dataclass

import math_verify
import pytest

from tests.rewards.rewrites import EQUAL, UNEQUAL, Rewrite
from tests.rewards.test_benchmark_golds import golds
from treeadv.forest import Verdict
from treeadv.rewards.judgement import Answer

FALSE_POSITIVES, FALSE_NEGATIVES = 0.005, 0.03
A_KIND = 120  # number of rewrites of each kind


@dataclass
class Count:
    """Counts the rewrites of one kind and the wrong verdicts of each grader."""

    rewrites: int = 0
    ours: int = 0
    bare: int = 0

    def __str__(self) -> str:
        return f"{self.rewrites:5}  {100 * self.ours / self.rewrites:6.2f} %  {100 * self.bare / self.rewrites:6.2f} %"


def _bare(answer: Answer) -> bool:
    with contextlib.suppress(Exception):
        parsed = (math_verify.parse(text, parsing_timeout=None) for text in (f"${answer.gold}$", answer.response))
        return bool(math_verify.verify(*parsed, timeout_seconds=None))
    return False


def _counted(grade, kinds: dict[str, Rewrite], equal: bool) -> dict[str, Count]:
    rng = random.Random(0)
    known = sorted({g.strip() for g in golds().values()})
    counts: dict[str, Count] = {}
    for name, rewrite in kinds.items():
        made = [
            Answer(response=r, gold=gold, verifier="math") for gold in known if (r := rewrite(gold, rng)) is not None
        ]
        made = rng.sample(made, min(A_KIND, len(made)))
        assert made, f"no gold answer has a rewrite of the kind {name}"
        judged = grade(*made)
        counts[name] = Count(
            len(made),
            sum((j.verdict is Verdict.VERIFIED) != equal for j in judged),
            sum(_bare(a) != equal for a in made),
        )
        print(f"{name:32} {counts[name]}")
    return counts


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kinds", "equal", "limit"),
    [(EQUAL, True, FALSE_NEGATIVES), (UNEQUAL, False, FALSE_POSITIVES)],
    ids=["equal", "unequal"],
)
def test_wrong_verdicts_on_rewrites_stay_under_the_limit(grade, kinds, equal, limit):
    logging.disable(logging.ERROR)
    counts = _counted(grade, kinds, equal)
    total = Count(*(sum(getattr(c, field) for c in counts.values()) for field in ("rewrites", "ours", "bare")))
    print(f"{'all':32} {total}")
    assert total.ours <= limit * total.rewrites
    if not equal:
        assert [name for name, c in counts.items() if c.ours > c.bare + 0.01 * c.rewrites] == []
