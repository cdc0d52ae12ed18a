"""The terms: nodes of the tree of a parsed answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, slots=True)
class Number:
    """A rational number. `rounded` says that the text has a decimal point or a power of ten.

    A rounded number may approximate another number.
    """

    value: Fraction
    rounded: bool = False


@dataclass(frozen=True, slots=True)
class Name:
    """A variable with its subscript, or a constant: `x`, `a_{3}`, `pi`, `e`, `i`, `infty`."""

    text: str


@dataclass(frozen=True, slots=True)
class Call:
    """A function or an operator with its arguments: `+`, `*`, `/`, `^`, `neg`, `sqrt`, `sin`, `cup`, `ratio`, ..."""

    function: str
    arguments: tuple[Term, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """Several terms between brackets: `(`, `[`, `{` (a set), `<` (a vector), or `""` for a list without brackets."""

    left: str
    right: str
    items: tuple[Term, ...]


@dataclass(frozen=True, slots=True)
class Relation:
    """A chain of relations: sides[0] signs[0] sides[1] signs[1] ..., with the signs `=`, `<`, `>`, `<=`, `>=`, `!=`,
    `in`.
    """

    signs: tuple[str, ...]
    sides: tuple[Term, ...]


@dataclass(frozen=True, slots=True)
class Measure:
    """A value with its unit. If `listed` is true, the unit is in `units.UNITS`; else the unit is the written noun."""

    value: Term
    unit: str
    listed: bool = True


@dataclass(frozen=True, slots=True)
class Words:
    """Text in lower case that is not mathematics."""

    text: str


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix by rows."""

    rows: tuple[tuple[Term, ...], ...]


Term = Number | Name | Call | Group | Relation | Measure | Words | Matrix

CONSTANTS = frozenset({"pi", "e", "i", "infty"})


def parts(term: Term) -> tuple[Term, ...]:
    """Return the child terms of a term."""
    match term:
        case Call(arguments=found) | Group(items=found) | Relation(sides=found):
            return found
        case Measure(value=value):
            return (value,)
        case Matrix(rows=rows):
            return tuple(cell for row in rows for cell in row)
        case _:
            return ()


def walk(term: Term) -> Iterator[Term]:
    """Yield the term and all its descendants."""
    yield term
    for child in parts(term):
        yield from walk(child)


def variables(term: Term) -> set[str]:
    """Return the names in a term that are neither constants nor the index of a sum."""
    match term:
        case Name(text):
            return set() if text in CONSTANTS else {text}
        case Call("sum" | "prod", (Name(index), first, last, body)):
            return variables(first) | variables(last) | variables(body) - {index}
        case _:
            return set().union(*map(variables, parts(term)))


def is_rounded(term: Term) -> bool:
    """Return whether a number of the term is written as a decimal."""
    return any(isinstance(t, Number) and t.rounded for t in walk(term))
