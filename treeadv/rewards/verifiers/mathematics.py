"""The verifier `math`, its cheap half: the answer is found, read and compared here, in the caller's process.

response -> final answer (`parsing.extract`) -> guards (`parsing.guards`) -> trees (`parsing.grammar`) -> verdict (`parsing.equality`).
A worker asks math-verify only about mathematics that the grammar does not have, such as integrals.
"""

from __future__ import annotations

import re

from treeadv.rewards.judgement import Answer, Outcome, Task, refused, unparsed, verified, wrong
from treeadv.rewards.parsing.comparison import compare, same_text
from treeadv.rewards.parsing.extract import clean, final_answer
from treeadv.rewards.parsing.guards import refusal
from treeadv.rewards.parsing.notation import notation, repaired
from treeadv.rewards.parsing.thought import spoken
from treeadv.rewards.parsing.tokens import Unreadable

_SEVERAL = re.compile(r"[^\d],|,[^\d]|,\d{1,2}(?!\d)|,\d{4,}|\b(?:and|or)\b|;|\\pm|\\\{|^\{")
_FORMAL = re.compile(  # what math-verify reads to the end; of other text it may read a part and drop the rest
    r"(?:\\(?:int|iint|iiint|oint|sum|prod|lim|frac|sqrt|to|infty|partial|cdot|times|left|right|begin|end|binom|ldots|pi|sin|cos|tan|cot|sec|csc|"
    r"arcsin|arccos|arctan|sinh|cosh|tanh|log|ln|exp|gcd|lcm|max|min|mod|pmod|det|alpha|beta|gamma|delta|epsilon|theta|lambda|mu|nu|rho|sigma|"
    r"tau|phi|varphi|chi|psi|omega|le|ge|ne|in|cup|cap|setminus|emptyset|mathbb|mathrm|pm|lfloor|rfloor|lceil|rceil|overline|vec|hat)(?![A-Za-z])"
    r"|\\[{}|\\]|p?matrix|bmatrix|vmatrix|array|[A-Za-z](?![A-Za-z]{3})|[\d\s.,;:+\-*/^_=<>(){}\[\]|!'&])+"
)
_BEYOND = re.compile(r"\\(?:int|iint|iiint|oint|sum|prod|lim|partial|gcd|lcm|begin|setminus|cup|cap|det)(?![A-Za-z])")  # not in the grammar, or not compared
_CALL = re.compile(r"(?<![A-Za-z\\])[A-Za-z]{2,}\s*\(")


def screen(answer: Answer) -> Outcome | Task:
    """The verdict, where text and exact or numeric comparison decide it, else what a worker must judge."""
    gold = clean(answer.gold)
    if _is_whole(answer.response, gold):
        return verified("same text")
    text = final_answer(answer.response, several=_SEVERAL.search(gold) is not None)
    if not text:
        return unparsed("no answer found")
    if same_text(gold, text):
        return verified("same text")
    if reason := refusal(text):
        return refused(reason)
    try:
        equal = compare(gold, text)
    except Unreadable as e:
        return _handed_on(gold, text, f"cannot be read: {e}")
    if equal is None:
        return _handed_on(gold, text, "cannot be compared")
    return verified("equal") if equal else wrong("not equal")


def _is_whole(response: str, gold: str) -> bool:
    """Whether the whole response is the gold answer, as in prose that marks no answer."""
    if len(response) > 2 * len(gold) + 20:
        return False
    said = spoken(response).strip()
    return bool(said) and same_text(gold, said)


def _handed_on(gold: str, text: str, reason: str) -> Outcome | Task:
    """A task for math-verify where both sides are nothing but mathematics that it reads in full."""
    sides = notation(repaired(gold) if "begin" not in gold else gold), notation(text)
    if any(_BEYOND.search(side) for side in sides) and all(_FORMAL.fullmatch(side) and not _CALL.search(side) for side in sides):
        return Task("math", *sides)
    return unparsed(reason)
