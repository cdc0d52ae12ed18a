"""The verifier `math`: text, rational arithmetic and guards decide most answers, math-verify the others."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from functools import lru_cache
from itertools import product
from typing import Any

from treeadv.forest import Verdict
from treeadv.rewards.judgement import Answer, Outcome, Task, refused, unparsed, verified, wrong
from treeadv.rewards.parsing.extract import clean, final_answer
from treeadv.rewards.parsing.guards import refusal
from treeadv.rewards.parsing.numbers import grouped, same_number, spelled_out
from treeadv.rewards.parsing.units import unit
from treeadv.rewards.verifiers.base import Verifier

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


class Mathematics(Verifier):
    """Compares two mathematical expressions. The screen gives the verdict of math-verify wherever it decides."""

    usage = "math"
    preloaded = True

    def screen(self, answer: Answer) -> Outcome | Task:
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

    def load(self) -> None:
        """Import math-verify and judge two known answers: this shows that it works, and imports what sympy imports late."""
        import math_verify

        self._parse, self._equal = _parser(), math_verify.verify
        logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its time-out is off: the worker has its own
        for gold, answer in ((r"\frac{1}{2}", "0.5"), ("(x+1)^2", "x^2+2x+1")):
            if self.judge(Task("math", gold, answer)).verdict is not Verdict.VERIFIED:
                raise RuntimeError(f"math-verify does not find {answer} equal to {gold}: its installation is broken")

    def judge(self, task: Task) -> Outcome:
        gold, answer = self._parse(task.gold), self._parse(task.text)
        if all(isinstance(a, str) for a in answer):
            return verified("same text") if set(gold) & set(answer) else unparsed("math-verify reads no mathematics in it")
        doubts = ["the gold answer has no mathematics"] if all(isinstance(g, str) for g in gold) else []
        for g, a in product(gold, answer):
            try:
                if self._equal(g, a, timeout_seconds=None, raise_on_error=True):
                    return verified("equal")
            except MemoryError:
                raise
            except Exception as e:  # sympy cannot compare these two readings; another pair may be equal
                doubts.append(type(e).__name__)
        return wrong("not comparable: " + ", ".join(doubts) if doubts else "not equal")


def _parser() -> Callable[[str], list[Any]]:
    """math-verify's parser of one answer, with a cache: the leaves of a forest share their gold answer."""
    import math_verify

    configs = (math_verify.LatexExtractionConfig(boxed_match_priority=0), math_verify.ExprExtractionConfig())

    @lru_cache(maxsize=2048)
    def parse(text: str) -> list[Any]:
        return math_verify.parse(f"\\boxed{{{text}}}", configs, parsing_timeout=None, raise_on_error=True)

    return parse


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
