"""Finds verifiers that accept a copy of the problem as its answer. A policy that is trained with such a verifier learns
to copy."""

from __future__ import annotations

import re

from treeadv.rewards.parsing.extract import final_answer

MOST_COPIES = 4  # copies of one problem that are graded
_FORMULA = re.compile(r"\$([^$]+)\$")
_CALCULATION = re.compile(  # bounded, so that a hostile text of a data file takes linear time
    r"[\d(][\d\s+\-*/^().,]{0,80}[+\-*/^][\d\s+\-*/^().,]{0,80}[\d)]"
)
_OPERATOR = re.compile(r"\d[)\s]*[-+*/^]|\\(?:frac|times|cdot|div)")


def copies(problem: str) -> list[str]:
    r"""Return answers that only repeat the text of a problem: the text, its formulas, its calculations.

    >>> copies("Calculate 6 + 7.")
    ['Calculate 6 + 7.', '6 + 7']
    >>> copies(r"Simplify $3x + 2x$ for a prize of 5.")[1]
    '3x + 2x'
    """
    last = final_answer(problem) or ""
    found = [*_FORMULA.findall(problem), *_CALCULATION.findall(problem), last, final_answer(last) or ""]
    calculations = dict.fromkeys(text.strip() for text in found if _OPERATOR.search(text))
    return [problem, *(c for c in calculations if c != problem)][:MOST_COPIES]
