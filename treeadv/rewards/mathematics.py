"""The verifier `math`, its cheap half: extraction, exact comparison and guards decide most answers without a computer algebra system."""

from __future__ import annotations

import re

from treeadv.rewards.extract import clean, final_answer
from treeadv.rewards.guards import refusal
from treeadv.rewards.judgement import Answer, Outcome, Task, refused, unparsed, verified, wrong
from treeadv.rewards.numbers import grouped, same_number, spelled_out

_SPACE = re.compile(r"(?:\\[!,;: ]|\\q?quad\b|~|\s)+")
_DROP = re.compile(r"\\left(?![a-z])|\\right(?![a-z])|\\displaystyle|\\?\$|(?<!\d) | (?!\d)")
_FRAC = re.compile(r"\\[dtc]frac")
_TEXT = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_WORDS = re.compile(r"[A-Za-z]{3,}(?:[ -][A-Za-z]+)*")
_UNIT = re.compile(r"[-+\d.,/\s]*\d\s*(?:\\(?:text|mathrm|mbox)\s*\{\s*([A-Za-z]+)\.?\s*\}|([A-Za-z]+))(\^?\{?\d?\}?)")
_ASSIGNED = re.compile(r"^(?:[A-Za-z]\w*\s*|[-+*/().\d\s]+)=(?=[^=]*$)")
_COUNTED = re.compile(r"\s*(?:\\?\$|[€£¥])?\s*([-+]?\d[\d,]*(?:\.\d+)?)(?:\s+[A-Za-z]{2,}|\s*\\(?:text|mathrm|mbox)\s*\{[^{}\d]*\})*\s*")
_SEVERAL = re.compile(r"[^\d],|,[^\d]|,\d{1,2}(?!\d)|,\d{4,}|\b(?:and|or)\b|;|\\pm")


def screen(answer: Answer) -> Outcome | Task:
    """Decide by text and rational arithmetic where that is the same verdict as math-verify's, else say what a worker must judge."""
    gold = clean(answer.gold)
    text = final_answer(answer.response, several=_SEVERAL.search(gold) is not None)
    if not text:
        return unparsed("no answer found")
    if _canonical(text) == _canonical(gold):
        return verified("same text")
    if _WORDS.fullmatch(gold) and _TEXT.sub(r"\1", text).casefold() == gold.casefold():
        return verified("same word")
    text, gold = grouped(text), grouped(gold)
    if reason := refusal(text) or _units(gold, text):
        return refused(reason)
    equal = same_number(_canonical(gold), _canonical(_bare(text)))
    if equal is not None:
        return verified("same number") if equal else wrong("another number")
    return Task("math", spelled_out(gold), spelled_out(text))


def _bare(text: str) -> str:
    """Of `x = 7`, `3 + 4 = 7`, `7 apples` and `$7` the 7; anything else as it is."""
    text = _ASSIGNED.sub("", text)
    return m[1] if (m := _COUNTED.fullmatch(text)) else text


def _canonical(text: str) -> str:
    """Spacing, sizing and fraction style dropped; a space between two digits stays, so that `1 2` is not 12."""
    text = _TEXT.sub(r"\1", _FRAC.sub(r"\\frac", text.replace("{,}", ",").replace(r"\%", "%")))
    text = _SPACE.sub(" ", text)
    return _DROP.sub("", text).rstrip(".")


def _units(gold: str, text: str) -> str | None:
    """math-verify drops units, so that 5 m equals 5 km: where both sides name a unit and they differ, do not ask it."""
    g, a = _UNIT.fullmatch(gold), _UNIT.fullmatch(text)
    if g is None or a is None or all(m[2] and len(m[2]) == 1 for m in (g, a)):  # 5 x and 5 y are variables
        return None
    ours, theirs = ((m[1] or m[2]).lower().rstrip("s") + m[3] for m in (g, a))
    return None if ours == theirs else f"unit {theirs} where the gold answer has {ours}"
