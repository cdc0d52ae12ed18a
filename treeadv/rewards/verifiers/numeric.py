"""The verifier `numeric`: a number within a relative tolerance."""

from __future__ import annotations

from treeadv.errors import BadInput
from treeadv.rewards.judgement import Answer, Outcome, refused, unparsed, verified, wrong
from treeadv.rewards.parsing.extract import final_answer
from treeadv.rewards.parsing.numbers import grouped, rational
from treeadv.rewards.verifiers.base import Verifier


class Numeric(Verifier):
    """Verifies |answer - gold| <= tolerance * |gold|, and for a gold answer of 0 |answer| <= tolerance."""

    usage = "numeric[:TOLERANCE]"

    def check_option(self, option: str | None) -> None:
        try:
            self._tolerance = float("1e-6" if option is None else option)
        except ValueError:
            self._tolerance = -1.0
        if not 0 <= self._tolerance < 1:
            raise BadInput(f"verifier {self.name!r}: the tolerance must be a number in [0, 1), such as numeric:1e-6")

    def screen(self, answer: Answer) -> Outcome:
        text = final_answer(answer.response)
        if text is None:
            return unparsed("no answer found")
        gold, value = rational(grouped(answer.gold.strip(" $"))), rational(grouped(text))
        if gold is None:
            return refused("the gold answer is not a number")
        if value is None:
            return unparsed("the answer is not a number")
        return verified() if abs(value - gold) <= self._tolerance * (abs(gold) or 1) else wrong()
