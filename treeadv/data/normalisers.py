"""Gold answers out of the answer column of the data: `task.normaliser`.

A normaliser takes the text of the answer and returns the gold answer. A new one is a function here and its entry in
`NORMALISERS`; `module:Name` needs no entry.
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
    """The normaliser with this name. Raises `BadInput` for an unknown one."""
    found = load_extension("task.normaliser", name, NORMALISERS)
    if not callable(found):
        raise BadInput(f"task.normaliser={name}: is no function")
    return cast(Normaliser, found)


def after_hashes(answer: str) -> str:
    """What follows the last ####, where GSM8K's derivations end; the whole text where there is no ####."""
    _, hashes, result = answer.rpartition("####")
    return result.strip(" \t\r\n") if hashes else answer


def last_box(answer: str) -> str:
    r"""The content of the last \boxed{...} of a solution. Raises `BadInput` where there is none."""
    if not (found := boxed_text(answer)):
        raise BadInput(r"task.normaliser=boxed: the answer has no \boxed{...}")
    return found


def unchanged(answer: str) -> str:
    return answer
