"""Gold answers: reads their text and checks that a verifier can verify them."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from treeadv.errors import BadInput, short
from treeadv.forest import Verdict
from treeadv.rewards.judgement import Answer
from treeadv.rewards.sandbox.pool import Judge
from treeadv.rewards.verifiers.registry import find_verifier, is_built_in

EXAMPLES = 3  # examples in a message about gold answers that no response can match
_NO_VALUES = ("nan", "inf", "+inf", "-inf", "infinity", "-infinity", "null")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gold:
    """A gold answer. `place` (file and line) is for error messages."""

    place: str
    text: str
    verifier: str
    meta: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Unmet:
    """The number of gold answers that no response can match, out of `total`, with examples."""

    count: int
    total: int
    examples: tuple[str, ...]

    def __str__(self) -> str:
        more = ", ..." if self.count > len(self.examples) else ""
        return f"no response can match {self.count} of {self.total} gold answers: {'; '.join(self.examples)}{more}"


def text_of(value: object, key: str, place: str) -> str:
    """Return the text of a column of a data line. A finite number is converted to text.

    Raises `BadInput` with the place for any other value, for blank text, and for control characters. A control
    character comes from a backslash that was not escaped in JSON, as in "\\frac".
    """
    if value is None:
        raise BadInput(f"{place}: {key} is null; remove the line or write the text")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise BadInput(f"{place}: {key} must be text or a number, got {short(value)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise BadInput(f"{place}: {key} is {value}, which is not a finite number; remove the line or give the text")
    text = _written(value, key, place)
    if not text.strip():
        raise BadInput(f"{place}: {key} is blank; remove the line or write the text")
    for character in text:
        if unicodedata.category(character) == "Cs":
            raise BadInput(f"{place}: {key} has an unpaired surrogate ({character!a}); write complete characters")
        if unicodedata.category(character) == "Cc" and character not in "\n\r\t":
            raise BadInput(f"{place}: {key} has the control character {character!a}; write a backslash as \\\\ in JSON")
    return text


def gold_text(value: object, place: str) -> str:
    """Return the text of a gold answer. Raises `BadInput` as `text_of` does, and for names of missing values (nan)."""
    text = text_of(value, "answer", place)
    if text.strip().lower() in _NO_VALUES:
        raise BadInput(f"{place}: answer is {text.strip()!r}, a missing value; remove the line or write the answer")
    return text


def check_golds(golds: Sequence[Gold], judge: Judge) -> Unmet | None:
    """Grade each gold answer against itself. Return the answers that are not verified; None if all are verified.

    A user's verifier is called once for each name. Raises `BadInput` if a verifier cannot be used or fails.
    """
    asked: list[tuple[Gold, Answer]] = []
    called: set[str] = set()
    for gold in golds:
        response = find_verifier(gold.verifier).perfect_response(gold.text)
        if response is not None:
            asked.append((gold, Answer(response=response, gold=gold.text, verifier=gold.verifier, meta=gold.meta)))
        elif gold.verifier not in called:
            called.add(gold.verifier)
            asked.append((gold, Answer(response=gold.text, gold=gold.text, verifier=gold.verifier, meta=gold.meta)))
    judgements = judge([answer for _, answer in asked])
    unmet = []
    for (gold, _), j in zip(asked, judgements, strict=True):
        users = gold.verifier in called or not is_built_in(gold.verifier)
        if users and j.verdict in (Verdict.CRASH, Verdict.TIMEOUT):
            raise BadInput(f"verifier {gold.verifier!r} fails on the gold answer at {gold.place}: {j.detail}")
        if gold.verifier not in called and j.verdict is not Verdict.VERIFIED:
            unmet.append(f"{gold.place} {short(gold.text)} ({j.detail or j.verdict.name.lower()})")
    if unmet and len(unmet) == len(asked):
        raise BadInput(f"verifier {golds[0].verifier!r} verifies none of the {len(unmet)} gold answers: {unmet[0]}")
    return Unmet(count=len(unmet), total=len(asked), examples=tuple(unmet[:EXAMPLES])) if unmet else None


def _written(value: str | int | float, key: str, place: str) -> str:
    try:
        return str(value)
    except ValueError as e:  # Python converts no integer of more than 4,300 digits to text
        raise BadInput(f"{place}: {key} is an integer that is too long ({e})") from e
