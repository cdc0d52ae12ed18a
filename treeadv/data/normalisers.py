"""The normalisers (`task.normaliser`), which extract the gold answer from the answer column of the data.

A normaliser takes the text of the answer and returns the gold answer. A new normaliser is a function here and an entry
in `NORMALISERS`. A normaliser that is named as `module:Name` needs no entry.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

from treeadv.errors import BadInput, one_line
from treeadv.extensions import load_extension
from treeadv.rewards.parsing.extract import boxed_text

Normaliser = Callable[[str], str]
HASHES, MARK = "hashes", "####"
NORMALISERS = {
    HASHES: "treeadv.data.normalisers:after_hashes",
    "boxed": "treeadv.data.normalisers:last_box",
    "none": "treeadv.data.normalisers:unchanged",
}


def find_normaliser(name: str) -> Normaliser:
    """Return the normaliser with this name. Raises `BadInput` for an unknown name."""
    found = load_extension("task.normaliser", name, NORMALISERS)
    if not callable(found):
        raise BadInput(f"task.normaliser={name} is not a function; name a function from text to text")
    return cast(Normaliser, found)


def normalised(answer: object, name: str, where: str) -> object:
    """Return the gold answer that the normaliser `name` finds in the answer column. A value that is no text stays as it
    is. Raises `BadInput` with the place `where`."""
    if not isinstance(answer, str):
        return answer
    try:
        return find_normaliser(name)(answer)
    except BadInput as e:
        raise BadInput(f"{where}: {e}") from e
    except Exception as e:  # a user's function may raise anything
        raise BadInput(f"{where}: task.normaliser={name} fails: {type(e).__name__}: {one_line(e)}") from e


def after_hashes(answer: str) -> str:
    """Return the text after the last ####, which marks an answer of GSM8K. Returns the whole text if it has no mark."""
    _, hashes, result = answer.rpartition(MARK)
    return result.strip(" \t\r\n") if hashes else answer


def check_marks(answers: Sequence[tuple[str, object]]) -> None:
    """Raise `BadInput` if some answers of a source have the mark #### and others do not.

    The gold answer of a row without the mark would be its whole solution. `answers` holds the place and the answer of
    each row."""
    texts = [(place, answer) for place, answer in answers if isinstance(answer, str) and answer]
    marked = [place for place, answer in texts if MARK in answer]
    bare = [place for place, answer in texts if MARK not in answer]
    if marked and bare:
        raise BadInput(
            f"{bare[0]}: the answer has no {MARK}, but {len(marked)} of {len(texts)} answers have one, such as that at"
            f" {marked[0]}; write {MARK} before the result, remove the row, or set task.normaliser"
        )


def last_box(answer: str) -> str:
    r"""Return the content of the last \boxed{...} of a solution. Raises `BadInput` for a solution without a box."""
    if not (found := boxed_text(answer)):
        raise BadInput(r"task.normaliser=boxed: the answer has no \boxed{...}")
    return found


def unchanged(answer: str) -> str:
    return answer
