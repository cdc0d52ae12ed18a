"""The value of a term: exact if the term is rational, else to 40 digits at given values of its variables."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import reduce
from typing import Any

import mpmath

from treeadv.rewards.parsing.terms import Call, Name, Number, Term, variables

DIGITS = 40
MAX_TERMS = 300  # largest number of terms of a sum or product
MAX_BITS = 64_000  # largest size of an exact value
_CONTEXT = mpmath.MPContext()
_CONTEXT.dps = DIGITS
Value = Any  # a number of mpmath, which has no type annotations


class Undefined(Exception):
    """The term has no value at this point: a division by zero, or a value outside of the real numbers."""


class Unknown(Exception):
    """The term has a part that this module does not evaluate."""


def exact(term: Term, point: Mapping[str, Fraction] | None = None) -> Fraction | None:
    """Return the value of a term that is rational by its form, or None. Raises `Undefined` at a division by zero.

    `point` gives variables rational values.
    """
    match term:
        case Number(value):
            return value
        case Name(text):
            return point.get(text) if point else None
        case Call("sum" | "prod", (Name(index), first, last, body)):
            terms = _range(exact(first, point), exact(last, point))
            series = [exact(body, {**(point or {}), index: Fraction(k)}) for k in terms or ()]
            known = [v for v in series if v is not None]
            if terms is None or len(known) < len(series):
                return None
            return sum(known, Fraction(0)) if term.function == "sum" else math.prod(known, start=Fraction(1))
        case Call("gcd" | "lcm", _) if variables(term):
            return None  # with variables, gcd and lcm may be of polynomials instead of values
        case Call(function, arguments) if function in _EXACT:
            values: list[Fraction] = []
            for argument in arguments:
                if (inner := exact(argument, point)) is None:
                    return None
                values.append(inner)
            try:
                result = _EXACT[function](*values)
                return None if result is None or _bits(result) > 2 * MAX_BITS else result
            except ZeroDivisionError:
                raise Undefined from None
            except (TypeError, ValueError):  # a wrong number of arguments
                return None
        case _:
            return None


def _bits(value: Fraction) -> int:
    return value.numerator.bit_length() + value.denominator.bit_length()


def _range(first: Fraction | None, last: Fraction | None) -> range | None:
    """Return the whole numbers of an index; None if a limit is not a whole number or the limits are too far apart."""
    if first is None or last is None or first.denominator != 1 or last.denominator != 1 or last - first > MAX_TERMS:
        return None
    return range(int(first), int(last) + 1)


def _exact_power(base: Fraction, exponent: Fraction) -> Fraction | None:
    if exponent.denominator != 1:
        root = _exact_root(base, Fraction(exponent.denominator)) if exponent.denominator < 20 and base >= 0 else None
        return None if root is None else _exact_power(root, Fraction(exponent.numerator))
    size = max(abs(base.numerator).bit_length(), base.denominator.bit_length())
    if abs(exponent) * size > MAX_BITS and base not in (0, 1, -1):
        return None
    return Fraction(base) ** int(exponent)


def _exact_root(radicand: Fraction, degree: Fraction) -> Fraction | None:
    if degree.denominator != 1 or not 2 <= degree <= 20:
        return None
    n = int(degree)
    if radicand < 0:
        root = _exact_root(-radicand, degree) if n % 2 else None
        return None if root is None else -root
    above, below = _whole_root(radicand.numerator, n), _whole_root(radicand.denominator, n)
    return None if above is None or below is None else Fraction(above, below)


def _whole_root(number: int, n: int) -> int | None:
    if n == 2:
        root = math.isqrt(number)
    else:
        if number.bit_length() > 900:
            return None
        root = round(number ** (1 / n))
    return root if root**n == number else None


def _exact_factorial(n: Fraction) -> Fraction | None:
    return Fraction(math.factorial(int(n))) if n.denominator == 1 and 0 <= n <= 5000 else None


def _exact_binomial(n: Fraction, k: Fraction) -> Fraction | None:
    if n.denominator != 1 or k.denominator != 1 or not 0 <= k <= n <= 20_000:
        return None
    return Fraction(math.comb(int(n), int(k)))


def _gcd(a: Fraction, b: Fraction) -> Fraction:
    common = math.lcm(a.denominator, b.denominator)
    return Fraction(math.gcd(int(a * common), int(b * common)), common)


def _lcm(a: Fraction, b: Fraction) -> Fraction:
    return abs(a * b) / _gcd(a, b) if a and b else Fraction(0)


def _ratio(*values: Fraction) -> Fraction | None:
    return values[0] / values[1] if len(values) == 2 else None


_EXACT: dict[str, Callable[..., Fraction | None]] = {
    "+": lambda *v: sum(v, Fraction(0)), "*": lambda *v: math.prod(v), "/": lambda a, b: a / b, "neg": lambda a: -a,
    "^": _exact_power, "root": _exact_root,
    "factorial": _exact_factorial, "binom": _exact_binomial, "abs": abs, "floor": lambda a: Fraction(math.floor(a)),
    "ceil": lambda a: Fraction(math.ceil(a)), "gcd": lambda *v: reduce(_gcd, v), "lcm": lambda *v: reduce(_lcm, v),
    "max": lambda *v: max(v),
    "min": lambda *v: min(v), "mod": lambda a, b: a % b, "ratio": _ratio, "sgn": lambda a: Fraction((a > 0) - (a < 0)),
}  # fmt: skip


def numeric(
    term: Term,
    point: Mapping[str, Fraction],
    *,
    imaginary: bool = False,
    log_base: int | None = None,
    digits: int = DIGITS,
) -> Value:
    """Return the value of a term to 40 digits, or to `digits`. `point` gives the variables their values.

    Unless `imaginary`, a value outside the real numbers raises `Undefined`. `log_base` is the base of `\\log`, None
    for e.
    """
    with _CONTEXT.workdps(digits):
        return _Evaluation(point, imaginary, log_base).value(term)


def log10(value: Value) -> Value:
    """Return the common logarithm of a positive number of mpmath, of any size."""
    return _CONTEXT.log10(value)


class _Evaluation:
    def __init__(self, point: Mapping[str, Fraction], imaginary: bool, log_base: int | None) -> None:
        self._point, self._imaginary, self._log_base = point, imaginary, log_base

    def value(self, term: Term) -> Value:
        try:
            found = self._value(term)
        except (ZeroDivisionError, ValueError, OverflowError, mpmath.libmp.NoConvergence):
            raise Undefined from None
        if isinstance(found, _CONTEXT.mpc) and not self._imaginary:
            if abs(found.imag) > abs(found.real) * _CONTEXT.mpf(10) ** (5 - DIGITS):
                raise Undefined
            return found.real
        if not _CONTEXT.isfinite(found):
            raise Undefined
        return found

    def _value(self, term: Term) -> Value:
        match term:
            case Number(value):
                return _of_fraction(value)
            case Name("pi"):
                return +_CONTEXT.pi
            case Name("e"):
                return +_CONTEXT.e
            case Name("i"):
                if not self._imaginary:
                    raise Undefined
                return _CONTEXT.mpc(0, 1)
            case Name("infty"):
                raise Unknown
            case Name(text):
                return _of_fraction(self._point[text])
            case Call("sum" | "prod" as function, (Name(index), first, last, body)):
                terms = _range(exact(first, self._point), exact(last, self._point))
                if terms is None:
                    raise Undefined
                values = [
                    _Evaluation({**self._point, index: Fraction(k)}, self._imaginary, self._log_base).value(body)
                    for k in terms
                ]
                return _CONTEXT.fsum(values) if function == "sum" else _CONTEXT.fprod(values)
            case Call(function, arguments) if function.startswith("apply "):
                return self._applied(function, arguments)
            case Call("log", (argument,)) if self._log_base:
                return _CONTEXT.log(self.value(argument), self._log_base)
            case Call("sin" | "cos" | "tan" | "cot" | "sec" | "csc" as function, (Call("deg", (argument,)),)):
                return getattr(_CONTEXT, function)(self.value(argument) * _CONTEXT.pi / 180)
            case Call(function, arguments) if function in _NUMERIC:
                return self._called(function, [self.value(a) for a in arguments])
            case _:
                raise Unknown

    def _called(self, function: str, values: list[Value]) -> Value:
        try:
            return _NUMERIC[function](*values)
        except TypeError as e:  # a wrong number of arguments, or a comparison of complex numbers
            raise Unknown from e

    def _applied(self, function: str, arguments: tuple[Term, ...]) -> Value:
        """Return the value of an unknown function: an arbitrary number that depends only on its name and arguments."""
        shift = sum(ord(c) * 31**n for n, c in enumerate(function)) % 1009
        total = _CONTEXT.mpf(shift) / 1009 + 1
        for n, argument in enumerate(arguments):
            total += _CONTEXT.sqrt(2 + n) * self.value(argument) + _CONTEXT.sin(self.value(argument) * (n + 1))
        return total


def _of_fraction(value: Fraction) -> Value:
    if value.denominator == 1:
        return _CONTEXT.mpf(value.numerator)
    return _CONTEXT.mpf(value.numerator) / value.denominator


def _power(base: Value, exponent: Value) -> Value:
    if abs(exponent) > 10**6 or abs(exponent) * abs(_CONTEXT.log(abs(base) or 1)) > 10**6:
        raise Unknown
    if base == 0:
        if exponent == 0:
            raise Undefined
        if exponent < 0:
            raise Undefined
        return _CONTEXT.mpf(0)
    return base**exponent


def _root(radicand: Value, degree: Value) -> Value:
    if isinstance(radicand, _CONTEXT.mpf) and radicand < 0 and degree == int(degree) and int(degree) % 2:
        return -_CONTEXT.root(-radicand, int(degree))
    return _CONTEXT.sqrt(radicand) if degree == 2 else radicand ** (1 / degree)


def _factorial(n: Value) -> Value:
    if abs(n) > 5000:
        raise Unknown
    return _CONTEXT.factorial(n)


def _binomial(n: Value, k: Value) -> Value:
    if abs(n) > 20_000 or abs(k) > 20_000:
        raise Unknown
    return _CONTEXT.binomial(n, k)


_NUMERIC: dict[str, Callable[..., Value]] = {
    "+": lambda *v: sum(v), "*": lambda *v: math.prod(v), "/": lambda a, b: a / b, "neg": lambda a: -a, "^": _power,
    "root": _root, "abs": abs,
    "factorial": _factorial, "binom": _binomial, "floor": _CONTEXT.floor, "ceil": _CONTEXT.ceil,
    "max": lambda *v: max(v), "min": lambda *v: min(v),
    "mod": lambda a, b: a - b * _CONTEXT.floor(a / b), "sgn": _CONTEXT.sign, "log": lambda a, *b: _CONTEXT.log(a, *b),
    "ln": _CONTEXT.ln,
    "lg": lambda a: _CONTEXT.log(a, 10), "exp": lambda a: _power(+_CONTEXT.e, a), "sin": _CONTEXT.sin,
    "cos": _CONTEXT.cos,
    "tan": _CONTEXT.tan, "cot": _CONTEXT.cot, "sec": _CONTEXT.sec, "csc": _CONTEXT.csc, "arcsin": _CONTEXT.asin,
    "arccos": _CONTEXT.acos,
    "arctan": _CONTEXT.atan, "arccot": _CONTEXT.acot, "sinh": _CONTEXT.sinh, "cosh": _CONTEXT.cosh,
    "tanh": _CONTEXT.tanh,
    "coth": _CONTEXT.coth, "ratio": lambda a, b: a / b,
}  # fmt: skip
