"""Compares two answers as texts: parses both texts, in all possible readings, and compares the trees."""

from __future__ import annotations

import re
from functools import lru_cache

from treeadv.rewards.parsing.equality import same
from treeadv.rewards.parsing.extract import final_answer
from treeadv.rewards.parsing.grammar import has_thousands, read
from treeadv.rewards.parsing.notation import notation, repaired
from treeadv.rewards.parsing.prose import FORMULA, answer_in
from treeadv.rewards.parsing.terms import Call, Group, Measure, Term, walk
from treeadv.rewards.parsing.times import time
from treeadv.rewards.parsing.tokens import Unreadable

_DECORATION = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|left|right|displaystyle)(?![A-Za-z])|[{}$]|\\[,;:! ]"
)
_CHOICE = re.compile(r"\s*(?:\\(?:text|textbf|mathrm|mathbf)\s*\{)?\s*\(([A-Z])\)\s*\}?(?:[\s\\~.:].*)?", re.DOTALL)
_SLASH = re.compile(r"/\s*\d+\s*(?:[A-Za-z(]|\\(?!cdot|times|text|cup|le|ge|in\b|%))")


def stated(gold: str) -> str:
    """Return the answer in a gold answer that is a sentence: the content of its box, or the text after "is".

    Any other gold answer is returned unchanged.
    """
    if "\\boxed" in gold:
        return final_answer(gold, several=True) or gold
    if " is " in gold and FORMULA.search(gold):
        return answer_in(gold) or gold
    return gold


def compare(gold: str, answer: str) -> bool | None:
    """Return whether an answer equals the gold answer; None if the rules cannot decide.

    Raises `Unreadable` if one of the texts cannot be parsed.
    """
    if len(gold.strip()) == 1 and gold.strip().isupper() and (choice := _CHOICE.fullmatch(answer)):
        return choice[1] == gold.strip()
    times = time(notation(gold)), time(notation(answer))
    if times[0] and times[1]:
        return times[0].same(times[1])
    if "\\\\" in gold and "begin" not in gold:
        gold = repaired(gold)
    gold = stated(gold)
    expected, found = read_gold(gold), read_gold(answer)
    if times[0] and isinstance(found, Call) and found.function == "ratio":
        return False
    try:
        verdict = same(expected, found)
    except RecursionError:
        return None
    if verdict is not False:
        return verdict
    return any(same(g, a) for g, a in _other_readings(gold, answer, expected, found))


@lru_cache(maxsize=4096)
def read_gold(text: str) -> Term:
    """Return the tree of a text, cached: the leaves of a forest share the gold answer and often have equal answers."""
    return read(text)


def same_text(gold: str, answer: str) -> bool:
    """Return whether two texts are equal apart from spacing, styling, dollar signs and a final full stop."""
    return _bare(gold) == _bare(answer)


@lru_cache(maxsize=2048)
def _bare(text: str) -> str:
    text = _DECORATION.sub(" ", notation(text))
    return re.sub(r"(?<![\dA-Za-z,]) | (?![\dA-Za-z])", "", " ".join(text.split())).strip().rstrip(" .")


def _other_readings(gold: str, answer: str, expected: Term, found: Term) -> list[tuple[Term, Term]]:
    """Return other pairs of trees, for a notation with two meanings."""
    pairs: list[tuple[Term, Term]] = []
    try:
        if isinstance(expected, Group) and has_thousands(notation(answer)):
            pairs.append((expected, read(answer, thousands=False)))
        if _names_unit(expected):
            pairs.append((expected, read(answer, letter_units=True)))
        elif _names_unit(found):
            pairs.append((read(gold, letter_units=True), found))
        if _SLASH.search(answer) or _SLASH.search(gold):
            pairs += [(expected, read(answer, tight_slash=True)), (read(gold, tight_slash=True), read_gold(answer))]
    except Unreadable:
        return pairs  # a text that has no second reading has only the pairs found so far
    return pairs


def _names_unit(term: Term) -> bool:
    return any(isinstance(t, Measure) and t.listed for t in walk(term))
