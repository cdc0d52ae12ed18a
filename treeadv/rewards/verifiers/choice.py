"""The verifier `choice`: one letter of a multiple choice."""

from __future__ import annotations

import re

from treeadv.rewards.judgement import Answer, Outcome, unparsed, verified, wrong
from treeadv.rewards.parsing.extract import last_line, marked_text
from treeadv.rewards.verifiers.base import Verifier

_STYLE = re.compile(r"\\(?:text|textbf|mathrm|mathbf|textit|boxed|fbox)\s*(?=\{)|[${}*_`]|\\[,;:! ]")
_DENIED = re.compile(
    r"\b(?:not|rather than|instead of|neither|nor|unlike|except)\s+(?:the\s+)?(?:option\s+|choice\s+)?\(?[A-Z]\b\)?"
)
_LEADING = re.compile(
    r"\s*(?:(?:option|choice|letter|answer)\s+)?(?:\(\s*([A-Za-z])\s*\)|([A-Z])\s*[).:,]|([A-Za-z])\s*(?:[).:,]?\s*$))"
)
_NAMED = re.compile(r"\b(?:option|choice|letter)\s+\(?([A-Za-z])\b\)?|\(([A-Z])\)|(?<![A-Za-z'])([A-Z])(?![A-Za-z'])")
_WORD = re.compile(r"\b[IA] (?=[a-z])(?!or\b|and\b|is\b)|\b[A-Z]\.(?=\s*[A-Z][a-z])")
_FURTHER = re.compile(r"\s*(?:,|and|or|/|&)\s*(?:option\s+)?\(?([A-Z])\b\)?")


class Choice(Verifier):
    """Compares one letter: `(B)`, `B.`, `B: text`, `b` and `option B, not A` are B, and an answer that names two
    letters is wrong.
    """

    usage = "choice"

    def screen(self, answer: Answer) -> Outcome:
        text = marked_text(answer.response) or last_line(answer.response) or ""
        letters = _letters(text.strip().split("\n")[0])
        if not letters:
            return unparsed("no choice found")
        if len(letters) > 1:
            return wrong("several choices")
        return verified() if letters == {answer.gold.strip(" ().$").upper()} else wrong()


def _letters(text: str) -> set[str]:
    """The letters that a line chooses. A letter that leads the line counts alone, whatever its explanation names."""
    text = _DENIED.sub(" ", _STYLE.sub(" ", text)).strip(" .")
    if leading := _LEADING.match(text):
        first = next(g for g in leading.groups() if g)
        further = _FURTHER.match(text, leading.end())
        return {first.upper(), further[1]} if further else {first.upper()}
    named = _NAMED.finditer(_WORD.sub(" ", text))
    return {next(g for g in m.groups() if g).upper() for m in named}
