"""Decides whether two values are equal: exactly if both are rational, else by 40 digits at several points."""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache

from treeadv.rewards.parsing.arithmetic import Undefined, Unknown, Value, exact, log10, numeric
from treeadv.rewards.parsing.terms import Call, Name, Term, is_rounded, variables, walk
from treeadv.seeds import generator

TOLERANCE = Fraction(1, 10**6)  # largest difference between a decimal and the number that it approximates
MAX_SIZE = 5000  # largest number of digits of a computed value
MORE_DIGITS = 100  # digits after the point for the second comparison, if 40 digits are equal
_EXACT = 1e-20  # largest relative difference between equal values at 40 digits
_RESIDUE = 1e-20  # a value below this may be 0 with a rounding error at 40 digits
_SHRUNK = 1e-20  # with more digits a difference of 0 shrinks by at least this factor
_ENOUGH = 3  # number of points at which both sides must have a value
_WHOLE = frozenset({"floor", "ceil", "factorial", "binom", "mod", "sum", "prod", "max", "min", "sgn"})
_OPAQUE = frozenset({"reals", "integers", "naturals", "rationals", "complexes", "set", "ldots"})


def same_rational(gold: Fraction, answer: Fraction, gold_rounded: bool, answer_rounded: bool) -> bool:
    """Return whether two rational numbers are equal.

    Numbers without a decimal must be equal exactly. A whole number equals only itself. A decimal may differ by a
    relative 1e-6 and by at most 1e-6.
    """
    if gold == answer:
        return True
    if not (gold_rounded or answer_rounded):
        return False
    if 1 in (gold.denominator, answer.denominator):
        return False
    return abs(gold - answer) <= TOLERANCE * min(Fraction(1), abs(gold))


def near(x: Value, y: Value, rounded: bool) -> bool:
    """Return whether two values of mpmath are equal up to rounding errors. `rounded` allows the tolerance of a
    decimal."""
    largest = max(abs(x), abs(y))
    difference = abs(x - y)
    return bool(difference <= largest * _EXACT or (rounded and difference <= 1.000001e-6 * min(1, largest)))


def same_scalar(gold: Term, answer: Term) -> bool | None:
    """Return whether two expressions are equal for all values of their variables; None if the values cannot decide."""
    if gold == answer:
        return True
    try:
        values = exact(gold), exact(answer)
    except Undefined:
        return None
    rounded = (is_rounded(gold) or is_rounded(answer)) and variables(gold) == variables(answer)
    if values[0] is not None and values[1] is not None:
        return same_rational(values[0], values[1], is_rounded(gold), is_rounded(answer))
    if (structural := _structural(gold, answer)) is not None:
        return structural
    if any(
        isinstance(t, Call) and t.function == "log" and len(t.arguments) == 1
        for side in (gold, answer)
        for t in walk(side)
    ):
        verdicts = [_same_at_points(gold, answer, rounded, base) for base in (None, 10)]
        return True if True in verdicts else None if None in verdicts else False
    return _same_at_points(gold, answer, rounded, None)


def _structural(gold: Term, answer: Term) -> bool | None:
    """Compare terms without a numeric value by structure: bases, infinities, named sets, dots."""
    bases = [t for t in (gold, answer) if isinstance(t, Call) and t.function.startswith("base ")]
    if bases:
        digits = [t.arguments[0] if isinstance(t, Call) and t in bases else t for t in (gold, answer)]
        same = isinstance(digits[0], type(digits[1])) and digits[0] == digits[1]
        return same and (len(bases) == 1 or bases[0] == bases[1])
    infinite = [_infinite(t) for t in (gold, answer)]
    if any(infinite):
        return infinite[0] == infinite[1]
    if any(isinstance(t, Name) and t.text in _OPAQUE for side in (gold, answer) for t in walk(side)):
        return False if isinstance(gold, Name) or isinstance(answer, Name) else None
    return None


def _infinite(term: Term) -> int:
    """Return 1 or -1 for an infinite term, else 0."""
    match term:
        case Name("infty"):
            return 1
        case Call("neg", (inner,)):
            return -_infinite(inner)
        case _:
            return 0


def _same_at_points(gold: Term, answer: Term, rounded: bool, log_base: int | None) -> bool | None:
    names = sorted(variables(gold) | variables(answer))
    imaginary = any(t == Name("i") for side in (gold, answer) for t in walk(side))
    whole = any(_needs_whole(t) for side in (gold, answer) for t in walk(side))
    for complex_values in (True,) if imaginary else (False, True):
        met = 0
        for point in points(tuple(names), whole):
            try:
                if not complex_values and (equal := _same_exactly(gold, answer, point, rounded)) is not None:
                    if not equal:
                        return False
                    met += 1
                    if met >= _ENOUGH + 3 * whole:
                        return True
                    continue
                x = numeric(gold, point, imaginary=complex_values, log_base=log_base)
                y = numeric(answer, point, imaginary=complex_values, log_base=log_base)
            except Undefined:
                continue
            except Unknown:
                return None
            largest = max(abs(x), abs(y))
            if not near(x, y, rounded) and largest > _RESIDUE:
                return False
            if not rounded or largest <= _RESIDUE:
                digits = MORE_DIGITS + max(0, int(log10(largest or 1)))
                if digits > MAX_SIZE:
                    return None
                more = [
                    numeric(side, point, imaginary=complex_values, log_base=log_base, digits=digits)
                    for side in (gold, answer)
                ]
                if abs(more[0] - more[1]) > max(abs(x - y) * _SHRUNK, largest * _EXACT**4):
                    return False
            met += 1
            if met >= _ENOUGH + 3 * whole:
                return True
        if met:
            return True if not names or met >= 2 else None
    return None


def _same_exactly(gold: Term, answer: Term, point: dict[str, Fraction], rounded: bool) -> bool | None:
    """Return whether both sides have the same value at a point; None unless both values are rational."""
    x, y = exact(gold, point), exact(answer, point)
    if x is None or y is None:
        return None
    return x == y or (rounded and abs(x - y) <= TOLERANCE * min(Fraction(1), max(abs(x), abs(y))))


def _needs_whole(term: Term) -> bool:
    """Return whether equality at whole numbers matters: rounding, counting, and powers of negative numbers."""
    if not isinstance(term, Call):
        return False
    return term.function in _WHOLE or (
        term.function == "^" and isinstance(term.arguments[0], Call) and term.arguments[0].function == "neg"
    )


@lru_cache(maxsize=512)
def points(names: tuple[str, ...], whole: bool) -> tuple[dict[str, Fraction], ...]:
    """Return points (values of the variables): positive, negative, mixed signs, whole numbers, and large ones with
    `whole`.

    Equal names give equal points.
    """
    if not names:
        return ({},)
    kinds = "whole far negative positive mixed whole whole positive whole whole" if whole else (
        "positive negative mixed positive small whole whole whole whole mixed")  # fmt: skip
    return tuple({name: _value(kind, name, n) for name in names} for n, kind in enumerate(kinds.split()))


def _value(kind: str, name: str, n: int) -> Fraction:
    rng = generator(name, n)
    if kind == "whole":
        return Fraction(rng.randrange(2, 9))
    size = Fraction(rng.randrange(1009, 1009 * 4), 1009)
    if kind in ("small", "far"):
        return size / 7 if kind == "small" else size * 97
    return -size if kind == "negative" or (kind == "mixed" and rng.random() < 0.6) else size
