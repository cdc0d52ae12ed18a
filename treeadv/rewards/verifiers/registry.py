"""The registry of verifiers by name.

A new verifier is a file in this folder and an entry in `BUILT_IN`. A verifier `module:NAME` needs no entry."""

from __future__ import annotations

import re
from functools import lru_cache

from treeadv.errors import BadInput, one_line, short
from treeadv.jsonl import JsonMapping
from treeadv.rewards.judgement import Answer, Grade, Task
from treeadv.rewards.verifiers.base import Unusable, Verifier
from treeadv.rewards.verifiers.choice import Choice
from treeadv.rewards.verifiers.exact import Exact
from treeadv.rewards.verifiers.function import UserDefined
from treeadv.rewards.verifiers.last_digit import LastDigit
from treeadv.rewards.verifiers.literal import Literal
from treeadv.rewards.verifiers.mathematics import Mathematics
from treeadv.rewards.verifiers.numeric import Numeric
from treeadv.rewards.verifiers.reasoning_gym import ReasoningGym
from treeadv.rewards.verifiers.remote import Remote
from treeadv.rewards.verifiers.weighted import PREFIX, WeightedSum, sum_terms

BUILT_IN: dict[str, type[Verifier]] = {
    "math": Mathematics,
    "exact": Exact,
    "numeric": Numeric,
    "literal": Literal,
    "choice": Choice,
    "last-digit": LastDigit,
    "reasoning-gym": ReasoningGym,
}
BY_FORM: dict[re.Pattern[str], type[Verifier]] = {
    re.compile(r"https?://.+"): Remote,
    re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*"): UserDefined,
}
USAGE = ", ".join(v.usage for v in (*BUILT_IN.values(), *BY_FORM.values()))


def is_built_in(name: str) -> bool:
    """Return whether the name is a verifier of this package: the name refers to no user's code and to no host."""
    return name.partition(":")[0] in BUILT_IN


@lru_cache(maxsize=256)
def find_verifier(name: str) -> Verifier:
    """Return the verifier with this name. Raises `BadInput` for an unknown name or an invalid option."""
    if name.startswith(PREFIX):
        return WeightedSum(name, [(find_verifier(term), weight) for term, weight in sum_terms(name)])
    kind = BUILT_IN.get(name.partition(":")[0]) or next(
        (v for form, v in BY_FORM.items() if form.fullmatch(name)), None
    )
    if kind is None:
        raise BadInput(f"verifier {short(name)} is unknown: use {USAGE}")
    return kind(name)


def verifier_of(row: JsonMapping, configured: str, place: str) -> Verifier:
    """Return the verifier of a data line: the verifier under the key `verifier`, or else the configured verifier.

    A data line may name a verifier of this package or of the configuration. A data line may not name other code or
    another host: a downloaded data file could then run code on this machine, or send a verifier's secrets to a host.
    Raises `BadInput` with the place.
    """
    name = row.get("verifier")
    if name is None:
        return find_verifier(configured)
    if not isinstance(name, str):
        raise BadInput(f"{place}: verifier must be the name of a verifier, got {short(name)}")
    terms = [term for term, _ in sum_terms(configured)] if configured.startswith(PREFIX) else []
    try:
        verifier = find_verifier(name)
    except BadInput as e:
        raise BadInput(f"{place}: {e}") from e
    if not is_built_in(verifier.name) and verifier.name not in (configured, *terms):
        raise BadInput(
            f"{place}: verifier {short(verifier.name)} runs code or calls a host; name the verifier in the"
            " configuration too"
        )
    return verifier


def meta_of(verifier: Verifier, row: JsonMapping, place: str) -> str:
    """Return the columns of a data line that a task of `verifier` needs, as text. Raises `BadInput` with the place."""
    try:
        meta = verifier.meta(row)
        meta.encode()
    except BadInput as e:
        raise BadInput(f"{place}: {e}") from e
    except UnicodeEncodeError as e:
        raise BadInput(
            f"{place}: meta has an unpaired surrogate ({e.object[e.start]!a}); write complete characters"
        ) from e
    except (TypeError, ValueError, RecursionError) as e:  # no JSON: a key that is no text, a number that is too long
        raise BadInput(
            f"{place}: the columns for verifier {verifier.name!r} cannot be written as JSON: {one_line(e)}"
        ) from e
    return meta


def screen(answer: Answer) -> Grade | Task:
    """Return the grade if the text alone decides it, else the task for a worker process."""
    return find_verifier(answer.verifier).screen(answer)


@lru_cache(maxsize=256)
def load_verifier(name: str) -> Verifier:
    """Return the loaded verifier with this name. Raises `Unusable` with the reason if loading fails."""
    try:
        verifier = find_verifier(name)
        verifier.load()
    except Exception as e:  # the import of a user's module may raise anything
        raise Unusable(f"verifier {name!r}: {type(e).__name__}: {e}") from e
    return verifier


def preload() -> None:
    """Load the verifiers whose `preloaded` is true."""
    for name, kind in BUILT_IN.items():
        if kind.preloaded:
            find_verifier(name).load()
