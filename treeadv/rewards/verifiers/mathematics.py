"""The verifier `math`, its cheap half: extraction, exact comparison and guards decide most answers without a computer algebra system."""

from __future__ import annotations

import re

from treeadv.rewards.judgement import Answer, Outcome, Task, refused, unparsed, verified, wrong
from treeadv.rewards.parsing.extract import clean, final_answer
from treeadv.rewards.parsing.guards import refusal
from treeadv.rewards.parsing.numbers import grouped, same_number, spelled_out
from treeadv.rewards.parsing.units import unit

_SPACE = re.compile(r"(?:\\[!,;: ]|\\q?quad\b|~|\s)+")
_DROP = re.compile(r"\\left(?![a-z])|\\right(?![a-z])|\\displaystyle|\\?\$|(?<!\d) | (?!\d)")
_FRAC = re.compile(r"\\[dtc]frac")
_TEXT = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_WORDS = re.compile(r"[A-Za-z]{3,}(?:[ -][A-Za-z]+)*")
_MEASURE = re.compile(  # a number, space, a unit as text or plain, its power
    r"(.*[\d)}])((?:[\s~]|\\[,;: ])*)(?:\\(?:text|textrm|mathrm|mbox)\s*\{([^{}\d]*)\}|([A-Za-z](?:[A-Za-z ./]*[A-Za-z.])?))"
    r"\s?(\^?\{?[23]?\}?)", re.DOTALL,
)  # fmt: skip
_PRICE = re.compile(r"\s*(?:\\?\$|[€£¥])\s*")
_ASSIGNED = re.compile(r"^(?:[A-Za-z]\w*\s*|[-+*/().\d\s]+)=(?=[^=]*$)")
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
    equal = same_number(_canonical(_bare(gold)), _canonical(_bare(text)))
    if equal is not None:
        return verified("same number") if equal else wrong("another number")
    return Task("math", spelled_out(gold), spelled_out(text))


def _bare(text: str) -> str:
    """Of `x = 7`, `3 + 4 = 7`, `7 inches`, `7\text{ cm}` and `$7` the 7; anything else as it is."""
    text = _PRICE.sub("", _ASSIGNED.sub("", text), count=1)
    m = _MEASURE.fullmatch(text.strip())
    if m is None or _unit(m) is None or (m[4] and (not m[2] or len(m[4]) == 1)):  # 7m and 7 m may be a product
        return text
    return m[1]


def _canonical(text: str) -> str:
    """Spacing, sizing and fraction style dropped; a space between two digits stays, so that `1 2` is not 12."""
    text = _TEXT.sub(r"\1", _FRAC.sub(r"\\frac", text.replace("{,}", ",").replace(r"\%", "%")))
    text = _SPACE.sub(" ", text)
    return _DROP.sub("", text).rstrip(".")


def _units(gold: str, text: str) -> str | None:
    """math-verify drops units, so that 5 m equals 5 km: where both sides name a known unit and they differ, do not ask it."""
    ours, theirs = (_unit(m) if (m := _MEASURE.fullmatch(side)) else None for side in (gold, text))
    return f"unit {theirs} where the gold answer has {ours}" if ours and theirs and ours != theirs else None


def _unit(measure: re.Match[str]) -> str | None:
    return unit((measure[3] if measure[3] is not None else measure[4]) + measure[5])
