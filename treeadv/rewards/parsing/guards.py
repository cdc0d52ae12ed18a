"""Refuses answers on which a computer algebra system would spend seconds or gigabytes, in time linear in the text.

The limits are above all benchmark answers (tests/rewards/test_golds.py) and below the sizes that were measured to hang
sympy. The worker's limits on time and memory still apply to accepted answers. The guards save time; they do not provide
the isolation.
"""

from __future__ import annotations

import re

MAX_LENGTH = 1500
MAX_NESTING = 30
MAX_DIGITS = 120
MAX_ELEMENTS = 120
MAX_EXPONENT = 50_000
MAX_FACTORIAL = 5_000
MAX_TERMS = 300  # largest number of terms of a sum, product or integral with numeric limits

_DIGITS = re.compile(rf"\d{{{MAX_DIGITS + 1}}}")
_EXPONENT = re.compile(r"(?<=[\w)}\]\s])(?:\^|\*\*)\s*[{(]?\s*-?\s*(\d+)")
_TOWER = re.compile(r"(?:\^|\*\*)[\s{(]*(\d+)[\s})]*(?:\^|\*\*)[\s{(]*(\d+)[\s})]*(\^|\*\*)?")
_FACTORIAL = re.compile(r"(\d+)\s*[})]*\s*!")
_NESTED_FACTORIAL = re.compile(r"!\s*[)}]+\s*!|!\s*!")
_CHOOSE = re.compile(r"(?:\\[dt]?binom|\bbinomial)\s*[{(][^{}]*(?:\d{5}|\^|!)|(?:\d{5}|\^[^{}]*)\}?\s*\\choose")
_BIG = re.compile(r"\d{5,}|\d\s*(?:\^|\*\*|!)|[eE]\d")
_SERIES = re.compile(r"\\(?:sum|prod|int|iint|iiint|oint)\b|\b(?:Sum|Product|Integral|sum|prod|integrate)\(")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff]")
_SCIENTIFIC = re.compile(r"(?<![A-Za-z\\{])\d+(?:\.\d*)?[eE]([-+]?\d+)")


def refusal(answer: str) -> str | None:
    """Return the reason why an answer (or gold answer) must not be given to sympy, or None."""
    if len(answer) > MAX_LENGTH:
        return f"longer than {MAX_LENGTH} characters"
    if _CONTROL.search(answer):
        return "control or surrogate characters"
    if _DIGITS.search(answer):
        return f"more than {MAX_DIGITS} digits in a row"
    if answer.count(",") + answer.count(";") + answer.count("&") >= MAX_ELEMENTS:
        return f"more than {MAX_ELEMENTS} elements"
    if _nesting(answer) > MAX_NESTING:
        return f"nested deeper than {MAX_NESTING}"
    return _growth(answer)


def _nesting(text: str) -> int:
    depth = deepest = 0
    for c in text:
        depth += (c in "({[") - (c in ")}]")
        deepest = max(deepest, depth)
    return deepest


def _growth(text: str) -> str | None:
    """Return the reason why the value of an answer is too large for the length of its text, or None."""
    if any(third or _power_over(base, exponent) for base, exponent, third in _TOWER.findall(text)):
        return "tower of exponents"
    if any(len(e) > 6 or int(e) > MAX_EXPONENT for e in _EXPONENT.findall(text)):
        return f"exponent over {MAX_EXPONENT}"
    if _NESTED_FACTORIAL.search(text) or any(len(n) > 6 or int(n) > MAX_FACTORIAL for n in _FACTORIAL.findall(text)):
        return f"factorial over {MAX_FACTORIAL}"
    if any(abs(int(e[:7])) > MAX_EXPONENT for e in _SCIENTIFIC.findall(text)):
        return f"exponent over {MAX_EXPONENT}"
    if _CHOOSE.search(text):
        return "binomial of large numbers"
    if _SERIES.search(text) and (_BIG.search(text) or any(int(n) > MAX_TERMS for n in re.findall(r"\d+", text))):
        return f"series over {MAX_TERMS} terms"
    return None


def _power_over(base: str, exponent: str) -> bool:
    """Return whether base^exponent is more than MAX_EXPONENT."""
    return len(base) > 6 or len(exponent) > 2 or int(base) ** int(exponent) > MAX_EXPONENT
