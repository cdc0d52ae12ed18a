"""The verifier `choice`: one letter of a multiple choice."""

from __future__ import annotations

import re

from treeadv.rewards.judgement import Answer, Outcome, unparsed, verified, wrong
from treeadv.rewards.parsing.extract import last_line, marked_answer
from treeadv.rewards.verifiers.base import Verifier

_PRONOUN = re.compile(r"\bI (?=[a-z])")
_LETTER = re.compile(r"(?<![A-Za-z])\(?([A-Z])\)?(?![A-Za-z'])")


class Choice(Verifier):
    """Compares one capital letter; `(B)`, `B.` and `B: text` count as B, and an answer that names two letters is wrong."""

    usage = "choice"

    def screen(self, answer: Answer) -> Outcome:
        text = marked_answer(answer.response) or last_line(answer.response) or ""
        letters = list(dict.fromkeys(_LETTER.findall(_PRONOUN.sub("", text.replace(r"\text", " ")))))
        if not letters:
            return unparsed("no choice found")
        if len(letters) > 1 and not re.match(r"\(?[A-Z][).:]", text):
            return wrong("several choices")
        return verified() if letters[0] == answer.gold.strip(" ().$") else wrong()
