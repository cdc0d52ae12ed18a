"""Sets of real numbers: intervals, unions and inequalities as sorted, disjoint pieces."""

from __future__ import annotations

from dataclasses import dataclass

from treeadv.rewards.parsing.arithmetic import Undefined, Unknown, Value, exact, numeric
from treeadv.rewards.parsing.scalars import near
from treeadv.rewards.parsing.terms import Call, Group, Name, Number, Relation, Term, is_rounded, variables

_INFINITE = float("inf")
_FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!=", "in": "in"}


@dataclass(frozen=True, slots=True)
class Interval:
    """An interval, or a point if both ends are equal."""

    low: Value
    low_closed: bool
    high: Value
    high_closed: bool

    def is_empty(self) -> bool:
        return bool(self.low > self.high or (self.low == self.high and not (self.low_closed and self.high_closed)))


RealSet = tuple[Interval, ...]
_REALS = (Interval(-_INFINITE, False, _INFINITE, False),)


def same_set(gold: Term, answer: Term) -> bool | None:
    """Return whether two terms are the same set of real numbers; None if one term is not a set of real numbers."""
    ours, theirs = real_set(gold), real_set(answer)
    if ours is None or theirs is None:
        return None
    if len(ours) != len(theirs):
        return False
    rounded = is_rounded(gold) or is_rounded(answer)
    return all(
        (g.low_closed, g.high_closed) == (a.low_closed, a.high_closed)
        and _same_end(g.low, a.low, rounded)
        and _same_end(g.high, a.high, rounded)
        for g, a in zip(ours, theirs, strict=True)
    )


def _same_end(x: Value, y: Value, rounded: bool) -> bool:
    if x in (_INFINITE, -_INFINITE) or y in (_INFINITE, -_INFINITE):
        return bool(x == y)
    return near(x, y, rounded)


def real_set(term: Term) -> RealSet | None:
    """Return the set that an interval, a finite set, an inequality or a union of them describes, or None."""
    match term:
        case Group("(" | "[" as left, ")" | "]" as right, (low, high)):
            return _interval(low, left == "[", high, right == "]")
        case Group("{" | "", _, items):
            if all(isinstance(i, Relation) for i in items) and items:
                return _combined([real_set(i) for i in items])
            return _points(items)
        case Name("reals"):
            return _REALS
        case Call("cup" | "cap" | "setminus" as operator, (first, second)):
            left_set, right_set = _operand(first), _operand(second)
            if left_set is None or right_set is None:
                return None
            if operator == "cup":
                return _union(left_set + right_set)
            return _intersection(left_set, right_set if operator == "cap" else _complement(right_set))
        case Relation():
            return _solutions(term)
        case _:
            return None


def _operand(term: Term) -> RealSet | None:
    """Return a side of a union: a set, or a number as the set with this element."""
    found = real_set(term)
    return _points((term,)) if found is None else found


def _end(term: Term) -> Value | None:
    match term:
        case Name("infty"):
            return _INFINITE
        case Call("neg", (Name("infty"),)):
            return -_INFINITE
    if variables(term):
        return None
    try:
        if (value := exact(term)) is not None:
            return numeric(Number(value), {})
        return numeric(term, {})
    except (Undefined, Unknown):
        return None


def _interval(low: Term, low_closed: bool, high: Term, high_closed: bool) -> RealSet | None:
    ends = _end(low), _end(high)
    if ends[0] is None or ends[1] is None:
        return None
    piece = Interval(ends[0], low_closed and ends[0] != -_INFINITE, ends[1], high_closed and ends[1] != _INFINITE)
    return None if piece.is_empty() else (piece,)


def _points(items: tuple[Term, ...]) -> RealSet | None:
    values = [_end(i) for i in items]
    found = [Interval(v, True, v, True) for v in values if v is not None and abs(v) != _INFINITE]
    return _union(tuple(found)) if len(found) == len(items) else None


def _combined(sets: list[RealSet | None]) -> RealSet | None:
    """Return the solutions of several inequalities: the intersection ("x > 1, x < 2"), or the union if the intersection
    is empty ("x < 1 or x > 2")."""
    known = [s for s in sets if s is not None]
    if len(known) != len(sets):
        return None
    common = known[0]
    for other in known[1:]:
        common = _intersection(common, other)
    return common or _union(tuple(p for s in known for p in s))


def _solutions(relation: Relation) -> RealSet | None:
    signs, sides = relation.signs, relation.sides
    if signs == ("in",):
        return real_set(sides[1])
    if len(sides) == 2:
        if _end(sides[0]) is not None and _end(sides[1]) is None:
            signs, sides = (_FLIPPED[signs[0]],), (sides[1], sides[0])
        return _one_sided(sides[0], signs[0], _end(sides[1]))
    if (len(sides) == 3 and {*signs} <= {"<", "<="} | {"="}) or {*signs} <= {">", ">="}:
        if len(sides) != 3 or "=" in signs:
            return None
        first = _one_sided(sides[1], _FLIPPED[signs[0]], _end(sides[0]))
        second = _one_sided(sides[1], signs[1], _end(sides[2]))
        return None if first is None or second is None else _intersection(first, second)
    return None


def _one_sided(middle: Term, sign: str, end: Value | None) -> RealSet | None:
    """Return the solutions of `middle sign end`.

    The middle is a variable, an unknown function of a variable, or the absolute value of a variable.
    """
    if end is None or sign in ("in", "="):
        return None
    match middle:
        case Call("abs", (Name() as name,)) if variables(name):
            inside = _intersection(
                _ray("<=" if sign in ("<=", ">") else "<", end), _ray(">=" if sign in ("<=", ">") else ">", -end)
            )
            return inside if sign in ("<", "<=") else _complement(inside) if sign != "!=" else None
        case Name() if variables(middle):
            return _ray(sign, end)
        case Call(function, _) if function.startswith("apply "):
            return _ray(sign, end)
        case _:
            return None


def _ray(sign: str, end: Value) -> RealSet:
    if sign == "!=":
        return _complement((Interval(end, True, end, True),))
    if sign in ("<", "<="):
        return (Interval(-_INFINITE, False, end, sign == "<="),)
    return (Interval(end, sign == ">=", _INFINITE, False),)


def _union(pieces: RealSet) -> RealSet:
    merged: list[Interval] = []
    for piece in sorted(pieces, key=lambda p: (p.low, not p.low_closed)):
        if piece.is_empty():
            continue
        last = merged[-1] if merged else None
        if last and (piece.low < last.high or (piece.low == last.high and (piece.low_closed or last.high_closed))):
            further = (piece.high, piece.high_closed) > (last.high, last.high_closed)
            high, closed = (piece.high, piece.high_closed) if further else (last.high, last.high_closed)
            merged[-1] = Interval(last.low, last.low_closed, high, closed)
        else:
            merged.append(piece)
    return tuple(merged)


def _complement(pieces: RealSet) -> RealSet:
    gaps: list[Interval] = []
    low, closed = -_INFINITE, False
    for piece in pieces:
        gaps.append(Interval(low, closed, piece.low, not piece.low_closed and piece.low != -_INFINITE))
        low, closed = piece.high, not piece.high_closed
    gaps.append(Interval(low, closed and low != _INFINITE, _INFINITE, False))
    return _union(tuple(gaps))


def _intersection(left: RealSet, right: RealSet) -> RealSet:
    found: list[Interval] = []
    for a in left:
        for b in right:
            low, low_closed = max((a.low, not a.low_closed), (b.low, not b.low_closed))
            high, high_closed = min((a.high, a.high_closed), (b.high, b.high_closed))
            found.append(Interval(low, not low_closed, high, high_closed))
    return _union(tuple(found))
