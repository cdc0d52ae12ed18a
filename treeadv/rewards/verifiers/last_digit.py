"""The verifier `last-digit`, which compares the last character of the answer."""

from __future__ import annotations

from treeadv.rewards.judgement import Answer, Grade, unparsed, verified, wrong
from treeadv.rewards.verifiers.base import Verifier


class LastDigit(Verifier):
    """A verifier that compares the last character of the answer, a digit 0 to 9, with the gold digit. Other characters
    do not count."""

    usage = "last-digit"

    def perfect_response(self, gold: str) -> str | None:
        return gold

    def read_part(self, answer: Answer) -> str:
        return answer.response.rstrip()[-1:]

    def screen(self, answer: Answer) -> Grade:
        last = self.read_part(answer)
        if not (last.isascii() and last.isdigit()):
            return unparsed("the answer does not end in a digit")
        return verified() if last == answer.gold.strip() else wrong()
