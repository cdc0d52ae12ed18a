"""The normalisers (`task.normaliser`), which extract the gold answer from the answer column of the data.

A normaliser takes the text of the answer and returns the gold answer. A new normaliser is a function here and an entry
in `NORMALISERS`. A normaliser that is named as `module:Name` needs no entry.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from treeadv.errors import BadInput
from treeadv.extensions import load_extension
from treeadv.rewards.parsing.extract import boxed_text

Normaliser = Callable[[str], str]
NORMALISERS = {
    "hashes": "treeadv.data.normalisers:after_hashes",
    "boxed": "treeadv.data.normalisers:last_box",
    "none": "treeadv.data.normalisers:unchanged",
}


def find_normaliser(name: str) -> Normaliser:
    """Return the normaliser with this name. Raises `BadInput` for an unknown name."""
    found = load_extension("task.normaliser", name, NORMALISERS)
    if not callable(found):
        raise BadInput(f"task.normaliser={name} is not a function")
    return cast(Normaliser, found)


def after_hashes(answer: str) -> str:
    """Return the text after the last ####, which marks an answer of GSM8K. Returns the whole text if it has no mark."""
    _, hashes, result = answer.rpartition("####")
    return result.strip(" \t\r\n") if hashes else answer


def last_box(answer: str) -> str:
    r"""Return the content of the last \boxed{...} of a solution. Raises `BadInput` for a solution without a box."""
    if not (found := boxed_text(answer)):
        raise BadInput(r"task.normaliser=boxed: the answer has no \boxed{...}")
    return found


def unchanged(answer: str) -> str:
    return answer
