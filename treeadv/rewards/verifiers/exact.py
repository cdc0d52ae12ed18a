"""The verifier `exact`: the same text."""

from __future__ import annotations

from treeadv.rewards.judgement import Answer, Outcome, unparsed, verified, wrong
from treeadv.rewards.parsing.extract import clean, last_line, marked_answer
from treeadv.rewards.verifiers.base import Verifier


class Exact(Verifier):
    """Compares the marked answer, or the last line, with the gold answer as text, up to spacing and a final stop."""

    usage = "exact"

    def screen(self, answer: Answer) -> Outcome:
        text = marked_answer(answer.response) or last_line(answer.response)
        if text is None:
            return unparsed("no answer found")
        return verified() if clean(text).split() == clean(answer.gold).split() else wrong()
