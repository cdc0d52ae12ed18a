"""The verifier `numeric`, which compares numbers within a relative tolerance."""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache

from treeadv.errors import BadInput
from treeadv.rewards.judgement import Answer, Grade, refused, unparsed, verified, wrong
from treeadv.rewards.parsing.extract import clean, final_answer
from treeadv.rewards.parsing.numbers import Quantity, quantity
from treeadv.rewards.verifiers.base import Verifier


class Numeric(Verifier):
    """A verifier of numbers. It verifies an answer if |answer - gold| <= tolerance * |gold|; for gold 0 if |answer| <=
    tolerance.

    An answer with another unit than the gold answer is wrong.
    """

    usage = "numeric[:TOLERANCE]"

    def check_option(self, option: str | None) -> None:
        try:
            self._tolerance = Fraction("1e-6" if option is None else option)
        except (ValueError, ZeroDivisionError):
            self._tolerance = Fraction(-1)
        if not 0 <= self._tolerance < 1:
            raise BadInput(f"verifier {self.name!r}: the tolerance must be a number in [0, 1), such as numeric:1e-6")

    def read_part(self, answer: Answer) -> str:
        return final_answer(answer.response) or ""

    def read_number(self, text: str) -> Quantity | None:
        """Return the number that an answer states, None if it states none."""
        return quantity(text)

    def screen(self, answer: Answer) -> Grade:
        gold = _gold(answer.gold)
        if gold is None:
            return refused("the gold answer is not a number")
        text = self.read_part(answer)
        if not text:
            return unparsed("no answer found")
        found = self.read_number(text)
        if found is None:
            return unparsed("the answer is not a number")
        if gold.unit and found.unit and gold.unit != found.unit:
            return wrong("another unit")
        near = any(
            abs(a - g) <= self._tolerance * (abs(g) or 1) for g in gold.values(found) for a in found.values(gold)
        )
        return verified() if near else wrong()


@lru_cache(maxsize=1024)
def _gold(text: str) -> Quantity | None:
    return quantity(clean(text))
