"""The verifier `literal`, which accepts a number that is written out and no calculation of it."""

from __future__ import annotations

from treeadv.errors import BadInput
from treeadv.rewards.parsing.numbers import Quantity, written_number
from treeadv.rewards.verifiers.numeric import Numeric


class Literal(Numeric):
    """A verifier of numbers that are written out. It verifies `13` and `6 + 7 = 13` for 13, but not `6 + 7`.

    `math` and `numeric` verify `6 + 7` for 13. A policy that is trained with them on arithmetic learns to copy the
    problem.
    """

    usage = "literal"

    def check_option(self, option: str | None) -> None:
        if option is not None:
            raise BadInput(f"verifier {self.name!r}: literal takes no option; numeric:TOLERANCE accepts a tolerance")
        super().check_option("0")

    def read_number(self, text: str) -> Quantity | None:
        return written_number(text)
