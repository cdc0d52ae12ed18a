"""Verifiers by name, their cheap halves: what can be told from the text without risk is told here, in the caller's process.

`math` (default), `exact`, `numeric` or `numeric:TOLERANCE`, `choice`, `reasoning-gym`, `module:function`, `http(s)://...`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from treeadv.errors import BadInput
from treeadv.rewards.judgement import Answer, Outcome, Task, refused, unparsed, verified, wrong
from treeadv.rewards.parsing.extract import clean, final_answer, last_line, marked_answer
from treeadv.rewards.parsing.numbers import grouped, rational
from treeadv.rewards.verifiers import mathematics

NAMES = ("math", "exact", "numeric", "choice", "reasoning-gym")
_FUNCTION = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_PRONOUN = re.compile(r"\bI (?=[a-z])")
_LETTER = re.compile(r"(?<![A-Za-z])\(?([A-Z])\)?(?![A-Za-z'])")


def check_name(name: str) -> None:
    """Raise `BadInput` unless `name` is a verifier."""
    if name in NAMES or name.startswith(("http://", "https://")):
        return
    if name.startswith("numeric:"):
        _tolerance(name)
    elif not _FUNCTION.fullmatch(name):
        raise BadInput(f"verifier {name!r} is unknown: use {', '.join(NAMES)}, numeric:TOLERANCE, module:function or an http(s) URL")


def screen(answer: Answer) -> Outcome | Task:
    """The outcome, where text alone decides it, else the task for a worker process. Linear in the answer's length."""
    screener = _SCREENS.get(answer.verifier.partition(":")[0])
    if screener is None or (answer.verifier not in NAMES and not answer.verifier.startswith("numeric:")):
        check_name(answer.verifier)
        return Task(answer.verifier, answer.gold, answer.response, answer.meta)
    return screener(answer)


def _exact(answer: Answer) -> Outcome:
    text = marked_answer(answer.response) or last_line(answer.response)
    if text is None:
        return unparsed("no answer found")
    return verified() if clean(text).split() == clean(answer.gold).split() else wrong()


def _tolerance(name: str) -> float:
    text = name.removeprefix("numeric:") if ":" in name else "1e-6"
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise BadInput(f"verifier {name!r}: the tolerance must be a number in [0, 1), such as numeric:1e-6")
    return value


def _numeric(answer: Answer) -> Outcome:
    """|answer - gold| <= tolerance * |gold|; for a gold of 0, <= tolerance."""
    tolerance = _tolerance(answer.verifier)
    text = final_answer(answer.response)
    if text is None:
        return unparsed("no answer found")
    gold, value = rational(grouped(answer.gold.strip(" $"))), rational(grouped(text))
    if gold is None:
        return refused("the gold answer is not a number")
    if value is None:
        return unparsed("the answer is not a number")
    return verified() if abs(value - gold) <= tolerance * (abs(gold) or 1) else wrong()


def _choice(answer: Answer) -> Outcome:
    """One capital letter; `(B)`, `B.` and `B: text` count as B, and naming two letters is wrong."""
    text = marked_answer(answer.response) or last_line(answer.response) or ""
    letters = list(dict.fromkeys(_LETTER.findall(_PRONOUN.sub("", text.replace(r"\text", " ")))))
    if not letters:
        return unparsed("no choice found")
    if len(letters) > 1 and not re.match(r"\(?[A-Z][).:]", text):
        return wrong("several choices")
    return verified() if letters[0] == answer.gold.strip(" ().$") else wrong()


def _reasoning_gym(answer: Answer) -> Outcome | Task:
    try:
        meta = json.loads(answer.meta)
        family, gold = meta["dataset"], str(meta["entry"]["answer"])
    except (ValueError, KeyError, TypeError) as e:
        raise BadInput('verifier reasoning-gym: meta must be JSON {"dataset": NAME, "entry": {"question", "answer", "metadata"}}') from e
    number = rational(grouped(gold)) is not None
    text = final_answer(answer.response) if number else marked_answer(answer.response) or last_line(answer.response)
    return Task(f"reasoning-gym:{family}", gold, text, answer.meta) if text else unparsed("no answer found")


_SCREENS: dict[str, Callable[[Answer], Outcome | Task]] = {
    "math": mathematics.screen, "exact": _exact, "numeric": _numeric, "choice": _choice, "reasoning-gym": _reasoning_gym,
}
