"""The verifier `choice`, which compares the letter of a multiple choice."""

from __future__ import annotations

from treeadv.rewards.judgement import Answer, Grade, unparsed, verified, wrong
from treeadv.rewards.parsing.choices import letters
from treeadv.rewards.parsing.extract import last_line, marked_text
from treeadv.rewards.verifiers.base import Verifier


class Choice(Verifier):
    """A verifier that compares one letter: `(B)`, `B.`, `B: text`, `b` and `option B, not A` are B.

    An answer with two letters is wrong."""

    usage = "choice"

    def read_part(self, answer: Answer) -> str:
        text = marked_text(answer.response) or last_line(answer.response) or ""
        return text.strip().split("\n")[0]

    def screen(self, answer: Answer) -> Grade:
        chosen = letters(self.read_part(answer))
        if not chosen:
            return unparsed("the response has no letter of a choice")
        if len(chosen) > 1:
            return wrong("several choices")
        return verified() if chosen == {answer.gold.strip(" ().$").upper()} else wrong()
