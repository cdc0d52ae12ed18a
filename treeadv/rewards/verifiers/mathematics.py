"""The verifier `math`, which compares mathematical expressions.

A response becomes a final answer (`parsing.extract`), which must pass limits (`parsing.guards`). A grammar parses the
answer and the gold answer to terms (`parsing.grammar`). Arithmetic compares the terms (`parsing.equality`). math-verify
judges answers outside of the grammar.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from functools import lru_cache
from itertools import product

from treeadv.forest import Verdict
from treeadv.rewards.judgement import Answer, Grade, Task, refused, unparsed, verified, wrong
from treeadv.rewards.parsing.choices import letters
from treeadv.rewards.parsing.comparison import compare, same_text
from treeadv.rewards.parsing.extract import clean, final_answer, last_line, marked_text
from treeadv.rewards.parsing.guards import refusal
from treeadv.rewards.parsing.notation import notation, repaired
from treeadv.rewards.parsing.thought import spoken
from treeadv.rewards.parsing.tokens import Unreadable
from treeadv.rewards.verifiers.base import Verifier

_SEVERAL = re.compile(r"[^\d],|,[^\d]|,\d{1,2}(?!\d)|,\d{4,}|\b(?:and|or)\b|;|\\pm|\\\{|^\{")
_BEYOND = re.compile(r"\\(?:int|iint|iiint|oint|sum|prod|lim|partial|gcd|lcm|begin|setminus|cup|cap|det)(?![A-Za-z])")
_FORMAL = re.compile(  # text that math-verify parses completely; of other text math-verify may parse only a part
    r"(?:\\(?:int|iint|iiint|oint|sum|prod|lim|frac|sqrt|to|infty|partial|cdot|times|begin|end|binom|ldots|pi|sin"
    r"|cos|tan|cot|sec|csc|arcsin|"
    r"arccos|arctan|sinh|cosh|tanh|log|ln|exp|gcd|lcm|max|min|mod|pmod|det|alpha|beta|gamma|delta|epsilon|theta"
    r"|lambda|mu|nu|rho|sigma|tau|phi|"
    r"varphi|chi|psi|omega|le|ge|ne|in|cup|cap|setminus|emptyset|mathbb|pm|lfloor|rfloor|lceil|rceil|overline|vec"
    r"|hat)(?![A-Za-z])"
    r"|\\[{}|\\]|p?matrix|bmatrix|vmatrix|array|[A-Za-z](?![A-Za-z]{3})|[\d\s.,;:+\-*/^_=<>(){}\[\]|!'&])+"
)
_LETTER = re.compile(r"\(?[A-J]\)?")
_CHOICE = re.compile(r"\W*[A-J](?:\W*$|[).:])|.*\b(?:options?|choices?|choose|pick|select)\b", re.DOTALL)
_CALL = re.compile(r"(?<![A-Za-z\\])[A-Za-z]{2,}\s*\(")


class Mathematics(Verifier):
    """A verifier that compares two mathematical expressions. The comparison is exact if both expressions are exact.

    Text that cannot be parsed completely is never verified.
    """

    usage = "math"
    preloaded = True

    def perfect_response(self, gold: str) -> str:
        return f"\\boxed{{{gold}}}"

    def read_part(self, answer: Answer) -> str:
        return final_answer(answer.response, several=_SEVERAL.search(clean(answer.gold)) is not None) or ""

    def screen(self, answer: Answer) -> Grade | Task:
        gold = clean(answer.gold)
        if _is_whole(answer.response, gold):
            return verified("same text")
        text = self.read_part(answer)
        grade = _compared(gold, text) if text else unparsed("no answer found")
        if isinstance(grade, Grade) and grade.verdict is Verdict.UNPARSED and _chooses(answer.response, gold):
            return verified("same choice")
        return grade

    def load(self) -> None:
        """Import math-verify and judge two known answers.

        The two answers check the installation and trigger sympy's lazy imports.
        """
        import math_verify

        self._parse, self._equal = _parser(), math_verify.verify
        # math-verify warns that its time limit is off. The worker has its own time limit.
        logging.getLogger("math_verify").setLevel(logging.ERROR)
        for gold, answer in ((r"\frac{1}{2}", "0.5"), ("(x+1)^2", "x^2+2x+1")):
            if self.judge(Task(verifier="math", gold=gold, text=answer)).verdict is not Verdict.VERIFIED:
                raise RuntimeError(f"math-verify does not find {answer} equal to {gold}: its installation is broken")

    def judge(self, task: Task) -> Grade:
        gold, answer = self._parse(task.gold), self._parse(task.text)
        if all(isinstance(a, str) for a in answer):
            return unparsed("math-verify finds no mathematics in the answer")
        doubts = ["the gold answer has no mathematics"] if all(isinstance(g, str) for g in gold) else []
        for g, a in product(gold, answer):
            try:
                if self._equal(g, a, timeout_seconds=None, raise_on_error=True):
                    return verified("equal for math-verify")
            except MemoryError:
                raise
            except Exception as e:  # sympy cannot compare this pair of expressions; another pair may be equal
                doubts.append(type(e).__name__)
        return wrong("not comparable: " + ", ".join(doubts) if doubts else "not equal for math-verify")


def _compared(gold: str, text: str) -> Grade | Task:
    """Return the grade for the text of an answer, or the task for math-verify."""
    if same_text(gold, text):
        return verified("same text")
    if reason := refusal(text) or _gold_refusal(gold):
        return refused(reason)
    try:
        equal = compare(gold, text)
    except Unreadable as e:
        *derivation, last = text.split("\n")
        if derivation and "begin" not in text:  # the box contains a derivation
            return _compared(gold, last)
        return _task_for_math_verify(gold, text, f"cannot be read: {e}")
    if equal is None:
        return _task_for_math_verify(gold, text, "cannot be compared")
    return verified("equal") if equal else wrong("not equal")


def _chooses(response: str, gold: str) -> bool:
    """Return whether the gold answer is the letter of a multiple choice and the response chooses it in prose."""
    if not _LETTER.fullmatch(gold) or "\\boxed" in response or "<answer" in response:
        return False
    marked = marked_text(response)
    line = (marked or last_line(response) or "").strip().split("\n")[0]
    return (marked is not None or _CHOICE.match(line) is not None) and letters(line) == {gold.strip("()")}


@lru_cache(maxsize=2048)
def _gold_refusal(gold: str) -> str | None:
    reason = refusal(gold)
    return f"the gold answer has {reason}" if reason else None


def _is_whole(response: str, gold: str) -> bool:
    """Return whether the response as a whole equals the gold answer, for prose without a marked answer."""
    if len(response) > 2 * len(gold) + 20 or "\\boxed" in response or "<answer" in response:
        return False
    said = spoken(response).strip()
    return bool(said) and same_text(gold, said)


def _task_for_math_verify(gold: str, text: str, reason: str) -> Grade | Task:
    """Return a task for math-verify, or UNPARSED with the reason.

    math-verify judges two texts that it can parse completely, if at least one of them is outside of the grammar."""
    sides = notation(repaired(gold) if "begin" not in gold else gold), notation(text)
    if any(_BEYOND.search(s) for s in sides) and all(_FORMAL.fullmatch(s) and not _CALL.search(s) for s in sides):
        return Task(verifier="math", gold=sides[0], text=sides[1])
    return unparsed(reason)


def _parser() -> Callable[[str], list[object]]:
    """Return math-verify's parser of one answer, with a cache: the leaves of a forest share their gold answer."""
    import math_verify

    config = (math_verify.LatexExtractionConfig(boxed_match_priority=0),)

    @lru_cache(maxsize=2048)
    def parse(text: str) -> list[object]:
        return math_verify.parse(f"\\boxed{{{text}}}", config, parsing_timeout=None, raise_on_error=True)

    return parse
