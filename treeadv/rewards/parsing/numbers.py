"""Parses a number in a text: `6.63 \\times 10^{-34}`, `x = 3.14`, `\\$2.50`, `3.14 \\text{ m}`, `50\\%`,
`2\\frac{1}{2}`, `\\sqrt{2}`.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from treeadv.rewards.parsing.arithmetic import Undefined, Unknown, exact, numeric
from treeadv.rewards.parsing.equality import stated_value
from treeadv.rewards.parsing.grammar import read
from treeadv.rewards.parsing.guards import refusal
from treeadv.rewards.parsing.terms import Call, Measure, Number, Relation, Term, variables
from treeadv.rewards.parsing.tokens import Unreadable


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """A number with its unit as written: the `value` of `50\\%` is 50 and its `unit` is `%`."""

    value: Fraction
    unit: str | None = None

    def values(self, other: Quantity) -> tuple[Fraction, ...]:
        """Return the possible values of this number in a comparison with `other`.

        A percentage may also be its hundredth if `other` has no percent sign."""
        return (self.value, self.value / 100) if self.unit == "%" and other.unit != "%" else (self.value,)


def quantity(text: str) -> Quantity | None:
    """Return the number that a text states, with its unit; None if the text is not a constant number."""
    if refusal(text):
        return None
    try:
        term = read(text)
        if isinstance(term, Relation):
            term = stated_value(term) or term
        if isinstance(term, Measure):
            value = _value(term.value)
            return None if value is None else Quantity(value=value, unit=term.unit)
        value = _value(term)
        return None if value is None else Quantity(value=value)
    except (Unreadable, Undefined, Unknown):
        return None


def written_number(text: str) -> Quantity | None:
    """Return the number that a text states, with its unit; None if the text states a calculation, not its result.

    >>> [written_number(t) and int(written_number(t).value) for t in ("13", "x = -13", "6 + 7 = 13", "6 + 7", "26/2")]
    [13, -13, 13, None, None]
    """
    if refusal(text):
        return None
    try:
        term = read(text)
    except Unreadable:
        return None
    if isinstance(term, Relation) and set(term.signs) == {"="}:
        term = term.sides[-1]
    if isinstance(term, Measure):
        term = term.value
    if isinstance(term, Call) and term.function == "neg":
        term = term.arguments[0]
    return quantity(text) if isinstance(term, Number) else None


def _value(term: Term) -> Fraction | None:
    if variables(term):
        return None
    if (value := exact(term)) is not None:
        return value
    approximate = numeric(term, {})
    mantissa, exponent = approximate.man_exp
    return int(mantissa) * Fraction(2) ** int(exponent) * (-1 if approximate < 0 and mantissa > 0 else 1)
