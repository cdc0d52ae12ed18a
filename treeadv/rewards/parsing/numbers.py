"""Spelling of numbers: what two answers must agree in before anything heavier than rational arithmetic is needed."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from fractions import Fraction

DECIMALS = 6  # math-verify's `float_rounding`: numbers are compared rounded to so many decimals ...
RELATIVE = Fraction(1, 1000)  # ... and must also be this close relatively, so that 1e-9 is not 0

_MAX_EXPONENT = 400
_MAX_LENGTH = 1000  # characters; Python refuses integers of more than 4,300 digits
_THOUSANDS = re.compile(r"(?<![\d.,])(\d{1,3}(?:(?:\\[,!;: ]|\{,\}|~|[ \u00a0\u2009\u202f]|,\\!)\d{3})+)(?![\d])")
_SEPARATOR = re.compile(r"[^\d]")
_SCIENTIFIC = re.compile(r"(?<![A-Za-z\\{\d])(\d+(?:\.\d*)?)[eE]([-+]?\d+)(?![\d.])")
_PLAIN = re.compile(
    r"([-+]?)((?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?|\d+\.)"
    r"(?:(?:[eE]|(?:\\times|\\cdot|\*)\s*10\s*\^\s*\{?)\s*([-+]?\d{1,4})\}?)?"  # 3e8, 3 \times 10^{8}
)
_FRACTION = re.compile(r"([-+]?)(?:\\[dt]?frac\s*\{\s*(-?\d+)\s*\}\s*\{\s*(\d+)\s*\}|(\d+)\s*/\s*(\d+))")
_ROUNDED = re.compile(r"[.eE]|\\times|\\cdot|\*")  # a decimal point or a power of ten
_MAGNITUDES = {"dozen": 12, "hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
MAGNITUDE = rf"(?:{'|'.join(_MAGNITUDES)})\b"
_MULTIPLIED = re.compile(
    r"(?<![\w.,/^}])((?:\d{1,3}(?:,\d{3}){1,4}|\d{1,15})(?:\.\d{1,9})?)(?:[\s~]|\\[,;: ]){0,3}(\\(?:text|textrm|mathrm|mbox)\s?\{)?\s?"
    rf"({MAGNITUDE}(?:\s{MAGNITUDE})?)"
)
_UNIFY = str.maketrans({"\u2212": "-", "\u2013": "-", "\uff0d": "-", "\u00d7": r"\times ", "\u00f7": r"\div ", "\u00b7": r"\cdot "})


def grouped(text: str) -> str:
    """The same answer with dashes and operators in ASCII or LaTeX, without thousands separators, and with 3000000 for 3 million."""
    return _MULTIPLIED.sub(_multiplied, _THOUSANDS.sub(lambda m: _SEPARATOR.sub("", m[1]), text.translate(_UNIFY)))


def _multiplied(m: re.Match[str]) -> str:
    value = Decimal(m[1].replace(",", "")) * math.prod(_MAGNITUDES[word] for word in m[3].split())
    digits = f"{value:f}"
    return (digits.rstrip("0").rstrip(".") if "." in digits else digits) + (m[2] or "")


def spelled_out(text: str) -> str:
    """Scientific notation as a product: math-verify reads only the 3 of `3e10`."""
    return _SCIENTIFIC.sub(lambda m: rf"{m[1]}\cdot 10^{{{int(m[2])}}}", text)


def rational(text: str) -> Fraction | None:
    """The value of a plain integer, decimal, fraction or number in scientific notation; None for anything else or longer."""
    text = text.strip()
    if len(text) > _MAX_LENGTH:
        return None
    if (m := _FRACTION.fullmatch(text)) and int(m[3] or m[5]) != 0:
        value = Fraction(int(m[2] or m[4]), int(m[3] or m[5]))
        return -value if m[1] == "-" else value
    m = _PLAIN.fullmatch(text)
    if m is None or not m[2] or abs(int(m[3] or 0)) > _MAX_EXPONENT:
        return None
    value = Fraction(m[2].replace(",", "")) * Fraction(10) ** int(m[3] or 0)
    return -value if m[1] == "-" else value


def same_number(gold: str, answer: str) -> bool | None:
    """Whether two numbers are equal; None where one of the texts is no number.

    Integers and fractions must be equal exactly. A decimal may differ beyond six places, as in math-verify, but also by no more than a
    relative 1e-3, and never from an integer.
    """
    g, a = rational(gold), rational(answer)
    if g is None or a is None:
        return None
    if g == a:
        return True
    rounded = [_ROUNDED.search(text) is not None for text in (gold, answer)]
    if not any(rounded) or any(v.denominator == 1 and not r for v, r in zip((g, a), rounded, strict=True)):
        return False
    return round(g, DECIMALS) == round(a, DECIMALS) and abs(g - a) <= RELATIVE * abs(g)
