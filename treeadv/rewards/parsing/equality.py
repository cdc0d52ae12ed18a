"""Decides whether two answers are equal, by kind (relation, collection, measure, words) and then by scalar values.

Every comparison returns True, False, or None if the rules cannot decide.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from fractions import Fraction

from treeadv.rewards.parsing.arithmetic import Undefined, Unknown, exact, numeric
from treeadv.rewards.parsing.realsets import same_set
from treeadv.rewards.parsing.scalars import near, points, same_scalar
from treeadv.rewards.parsing.terms import (
    Call,
    Group,
    Matrix,
    Measure,
    Name,
    Number,
    Relation,
    Term,
    Words,
    is_rounded,
    parts,
    variables,
    walk,
)

MAX_MATCHED = 24  # items of a list that are matched one by one
_TRIGONOMETRIC = frozenset({"sin", "cos", "tan", "cot", "sec", "csc"})
_SET_CALLS = frozenset({"cup", "cap", "setminus"})


def same(gold: Term, answer: Term) -> bool | None:
    """Return whether the answer equals the gold answer."""
    gold, answer = _spread(gold), _spread(answer)
    if gold == answer:
        return True
    if isinstance(gold, Words) or isinstance(answer, Words):
        return False
    if isinstance(gold, Relation) or isinstance(answer, Relation):
        return _same_relation(gold, answer)
    if _is_collection(gold) or _is_collection(answer):
        return _same_collection(gold, answer)
    if isinstance(gold, Measure) or isinstance(answer, Measure):
        return _same_measure(gold, answer)
    return _same_value(gold, answer)


def _spread(term: Term) -> Term:
    """Return the list of the two values of a term with a plus-minus sign."""
    match term:
        case Group(left, right, items) if left in ("", "{"):
            spread = [_spread(i) for i in items]
            flat = [j for i in spread for j in (i.items if isinstance(i, Group) and not i.left else (i,))]
            return Group(left, right, tuple(flat))
        case Relation(("=",), (name, value)) if _has_sign(value):
            values = _spread(value)
            return (
                Group("", "", tuple(Relation(("=",), (name, v)) for v in values.items))
                if isinstance(values, Group)
                else term
            )
        case Call() if _has_sign(term):
            return Group("", "", (_signed(term, False), _signed(term, True)))
        case _:
            return term


def _has_sign(term: Term) -> bool:
    return isinstance(term, Call) and any(isinstance(t, Call) and t.function in ("pm", "mp") for t in walk(term))


def _signed(term: Term, negative: bool) -> Term:
    """Return the term with + for each plus-minus sign, or with - for each."""
    if not isinstance(term, Call):
        return term
    arguments = tuple(_signed(a, negative) for a in term.arguments)
    if term.function in ("pm", "mp"):
        first, second = arguments
        minus = negative == (term.function == "pm")
        return Call("+", (first, Call("neg", (second,)) if minus else second))
    return Call(term.function, arguments)


# Relations


def _same_relation(gold: Term, answer: Term) -> bool | None:
    if isinstance(gold, Relation) and isinstance(answer, Relation):
        ours, theirs = assigned(gold), assigned(answer)
        if ours and theirs and ours[0] == theirs[0]:
            return same(ours[1], theirs[1])
        if set(gold.signs) == set(answer.signs) == {"="}:
            return _proportional(gold, answer)
        if (found := same_set(gold, answer)) is not None:
            return found and variables(gold) == variables(answer)
        return _proportional(gold, answer)
    relation, other = (gold, answer) if isinstance(gold, Relation) else (answer, gold)
    assert isinstance(relation, Relation)
    if relation is gold and (named := assigned(relation)):
        return same(named[1], other)
    if relation is answer and (value := stated_value(relation)) is not None:
        return same(other, value)
    if set(relation.signs) == {"="} or not _is_collection(other):
        return False
    return same_set(gold, answer)


def assigned(relation: Relation) -> tuple[Term, Term] | None:
    """Return the name and the value of `x = 3`, `3 = x`, `x = 1 + 2 = 3` or `x \\in S`, else None."""
    first, last = relation.sides[0], relation.sides[-1]
    if set(relation.signs) == {"="} or relation.signs == ("in",):
        if _is_name(first):
            return first, last
        if len(relation.sides) == 2 and _is_name(last) and not variables(first) and relation.signs == ("=",):
            return last, first
    return None


def _is_name(term: Term) -> bool:
    """Return whether a term names a value: `x`, `f(x)`, `|AB|`, `AB`, `AB/CD`, `A:B`, `(p, q)`, `cos C`."""
    match term:
        case Name(text):
            return bool(variables(term)) or " " in text
        case Call("abs" | "det" | "*" | "/" | "ratio", arguments):
            return all(_is_name(a) and not _is_unknown(a) for a in arguments)
        case Call(function, (Name(text),)) if function in _TRIGONOMETRIC:
            return text.isupper() or len(text) > 1
        case Call(function, _):
            return function.startswith("apply ")
        case Group("(", ")", items):
            return all(_is_name(i) for i in items)
        case _:
            return False


def _is_unknown(term: Term) -> bool:
    """Return whether a term is a variable to solve for, by its letter: `|x| = 3` and `xy = 3` are equations to
    solve."""
    return isinstance(term, Name) and term.text in ("x", "y", "z", "x'", "y'", "z'")


def _is_summand(term: Term) -> bool:
    """Return whether a term is a name in a requested sum: the m of `m + n`, the AB of `AB + CD`."""
    if isinstance(term, Name):
        return not _is_unknown(term)
    return _is_name(term) and all(map(str.isupper, variables(term)))


def stated_value(relation: Relation) -> Term | None:
    """Return the value that an equation states: 7 for `x = 7`, `3 + 4 = 7` and `m + n = 7`.

    `x + y = 7` and `2 + 2 = 5` state no value.
    """
    if named := assigned(relation):
        return named[1]
    if set(relation.signs) != {"="}:
        return None
    first, *others = relation.sides
    if variables(first):
        terms = parts(first) if isinstance(first, Call) and first.function == "+" else ()
        added = [t.arguments[0] if isinstance(t, Call) and t.function == "neg" else t for t in terms]
        return others[-1] if added and all(_is_summand(t) for t in added) else None
    return None if _all(same(first, s) for s in others) is False else others[-1]


def _proportional(gold: Relation, answer: Relation) -> bool | None:
    """Return whether two equations or inequalities differ only by a factor or by exchanged sides."""
    if len(gold.sides) != 2 or len(answer.sides) != 2:
        return False if len(gold.sides) != len(answer.sides) else _same_sides(gold, answer)
    if variables(gold) != variables(answer):
        return False
    flips = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}
    if answer.signs[0] not in (gold.signs[0], flips.get(gold.signs[0])):
        return False
    differences = [Call("+", (r.sides[0], Call("neg", (r.sides[1],)))) for r in (gold, answer)]
    rounded = is_rounded(gold) or is_rounded(answer)
    ratios = []
    for point in points(tuple(sorted(variables(gold))), False):
        try:
            x, y = (numeric(d, point) for d in differences)
        except Undefined:
            continue
        except Unknown:
            return None
        if x == 0 or y == 0:
            continue
        ratios.append(x / y)
    if len(ratios) < 3:
        return None
    if not all(near(r, ratios[0], rounded) for r in ratios):
        return False
    return gold.signs[0] in ("=", "!=") or (ratios[0] > 0) == (gold.signs == answer.signs)


def _same_sides(gold: Relation, answer: Relation) -> bool | None:
    if gold.signs != answer.signs:
        return False
    return _all(same(g, a) for g, a in zip(gold.sides, answer.sides, strict=True))


# Collections


def _is_collection(term: Term) -> bool:
    return (
        isinstance(term, Group | Matrix)
        or (isinstance(term, Call) and term.function in _SET_CALLS)
        or term == Name("reals")
    )


def _same_collection(gold: Term, answer: Term) -> bool | None:
    if isinstance(gold, Group) and isinstance(answer, Group):
        return _same_group(gold, answer)
    if isinstance(gold, Matrix) or isinstance(answer, Matrix):
        return _same_matrix(gold, answer)
    for one, other in ((gold, answer), (answer, gold)):
        if isinstance(one, Group) and len(one.items) == 1 and one.left == "{" and not _is_collection(other):
            return same(one.items[0], other)
    if not _is_collection(gold) or not _is_collection(answer):
        return False
    return same_set(gold, answer)


def _same_group(gold: Group, answer: Group) -> bool | None:
    kinds = {gold.left, answer.left}
    if kinds <= {"", "{"}:
        return _same_items(gold, answer)
    if "{" in kinds or len(gold.items) != len(answer.items):
        return False
    if "" in kinds:
        return not ("[" in kinds and len(gold.items) == 2) and _in_order(gold, answer)
    if len(gold.items) == 2 and (gold.left, gold.right) != (answer.left, answer.right):
        return False
    return _in_order(gold, answer)


def _in_order(gold: Group, answer: Group) -> bool | None:
    return _all(same(g, a) for g, a in zip(gold.items, answer.items, strict=True))


def _same_items(gold: Group, answer: Group) -> bool | None:
    """Compare lists and sets in any order. A repeated item counts, except in braces and for tuples."""
    ours, theirs = _values(gold), _values(answer)
    if gold.left == answer.left == "{" or all(isinstance(i, Group) for i in (*ours, *theirs)):
        ours, theirs = list(dict.fromkeys(ours)), list(dict.fromkeys(theirs))
    if len(ours) != len(theirs):
        return False
    named = [[isinstance(i, Relation) and assigned(i) is not None for i in items] for items in (ours, theirs)]
    if all(named[0]) != all(named[1]) and not (any(named[0]) and any(named[1])):
        relations = [i for i in (ours if named[0][0] else theirs) if isinstance(i, Relation)]
        names = {found[0] for r in relations if (found := assigned(r))}
        if len(names) > 1:  # the values of the side without names must have the order of the names
            return _all(same(g, a) for g, a in zip(ours, theirs, strict=True))
    if any(i == Name("ldots") for i in (*ours, *theirs)):
        return _all(same(g, a) for g, a in zip(ours, theirs, strict=True))
    return _matched(ours, theirs)


def _values(group: Group) -> list[Term]:
    """Return the items of a list. In `n = 1, 2, 3` the name n applies to all values."""
    items = list(group.items)
    first = items[0] if items else None
    if (
        isinstance(first, Relation)
        and (named := assigned(first))
        and not any(isinstance(i, Relation) for i in items[1:])
        and len(items) > 1
    ):
        return [first, *(Relation(("=",), (named[0], i)) for i in items[1:])]
    return items


def _matched(ours: list[Term], theirs: list[Term]) -> bool | None:
    try:
        exact_ours, exact_theirs = [exact(i) for i in ours], [exact(i) for i in theirs]
    except Undefined:
        return None
    if None not in exact_ours and None not in exact_theirs and Counter(exact_ours) == Counter(exact_theirs):
        return True
    if len(ours) > MAX_MATCHED:
        return None
    rest, unknown = list(theirs), False
    for item in ours:
        verdicts = [same(item, other) for other in rest]
        if True in verdicts:
            del rest[verdicts.index(True)]
        elif None in verdicts:
            unknown = True
        else:
            return False
    return None if unknown else True


def _same_matrix(gold: Term, answer: Term) -> bool | None:
    if isinstance(gold, Matrix) and isinstance(answer, Matrix):
        if [len(r) for r in gold.rows] != [len(r) for r in answer.rows]:
            return False
        return _all(same(g, a) for r, s in zip(gold.rows, answer.rows, strict=True) for g, a in zip(r, s, strict=True))
    matrix, other = (gold, answer) if isinstance(gold, Matrix) else (answer, gold)
    assert isinstance(matrix, Matrix)
    if isinstance(other, Group) and other.left == "(" and 1 in (len(matrix.rows), len(matrix.rows[0])):
        flat = Group("(", ")", tuple(c for r in matrix.rows for c in r))
        return len(flat.items) == len(other.items) and (
            _in_order(flat, other) if matrix is gold else _in_order(other, flat)
        )
    return None if any(isinstance(t, Matrix) for t in walk(other)) else False


# Measures and values


def _same_measure(gold: Term, answer: Term) -> bool | None:
    """Compare measures. One unit may be missing. A percentage equals its hundredth if the other side has no sign."""
    units = [t.unit if isinstance(t, Measure) else None for t in (gold, answer)]
    ours, theirs = (t.value if isinstance(t, Measure) else t for t in (gold, answer))
    if None not in units:
        return units[0] == units[1] and same(ours, theirs)
    if "%" in units:
        hundred = Number(Fraction(100))
        hundredth = [Call("/", (t, hundred)) if u == "%" else t for t, u in zip((ours, theirs), units, strict=True)]
        verdicts = [same(ours, theirs), same(*hundredth)]
        return True if True in verdicts else None if None in verdicts else False
    return same(ours, theirs)


def _same_value(gold: Term, answer: Term) -> bool | None:
    if any(isinstance(t, Matrix | Group | Relation | Measure | Words) for side in (gold, answer) for t in walk(side)):
        return None
    ratios = [t.arguments if isinstance(t, Call) and t.function == "ratio" else () for t in (gold, answer)]
    if max(map(len, ratios)) > 2:
        if len(ratios[0]) != len(ratios[1]):
            return False
        first, *others = [Call("/", pair) for pair in zip(*ratios, strict=True)]
        return _all(same_scalar(first, other) for other in others)
    return same_scalar(gold, answer)


def _all(verdicts: Iterable[bool | None]) -> bool | None:
    """Return False if one verdict is False, else None if one verdict is None, else True."""
    unknown = False
    for verdict in verdicts:
        if verdict is False:
            return False
        unknown |= verdict is None
    return None if unknown else True
