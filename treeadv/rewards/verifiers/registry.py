"""All verifiers by name. A new one is a file beside this one and its entry in `BUILT_IN`; `module:NAME` needs no
entry."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from treeadv.errors import BadInput
from treeadv.rewards.judgement import Answer, Outcome, Task
from treeadv.rewards.verifiers.base import Unusable, Verifier
from treeadv.rewards.verifiers.choice import Choice
from treeadv.rewards.verifiers.exact import Exact
from treeadv.rewards.verifiers.function import UserDefined
from treeadv.rewards.verifiers.last_digit import LastDigit
from treeadv.rewards.verifiers.mathematics import Mathematics
from treeadv.rewards.verifiers.numeric import Numeric
from treeadv.rewards.verifiers.reasoning_gym import ReasoningGym
from treeadv.rewards.verifiers.remote import Remote
from treeadv.rewards.verifiers.weighted import PREFIX, WeightedSum, sum_terms

BUILT_IN: dict[str, type[Verifier]] = {
    "math": Mathematics,
    "exact": Exact,
    "numeric": Numeric,
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
    """Whether the name is of a verifier of this package, which runs no code and asks no host that the name says."""
    return name.partition(":")[0] in BUILT_IN


@lru_cache(maxsize=256)
def find_verifier(name: str) -> Verifier:
    """The verifier with this name. Raises `BadInput` for an unknown name or a bad option."""
    if name.startswith(PREFIX):
        return WeightedSum(name, [(find_verifier(term), weight) for term, weight in sum_terms(name)])
    kind = BUILT_IN.get(name.partition(":")[0]) or next(
        (v for form, v in BY_FORM.items() if form.fullmatch(name)), None
    )
    if kind is None:
        raise BadInput(f"verifier {name!r} is unknown: use {USAGE}")
    return kind(name)


def verifier_of(row: Mapping[str, Any], configured: str, place: str) -> Verifier:
    """The verifier that a data line names under `verifier`, else the configured one. Raises `BadInput` with the place.

    A data line may name a verifier of this package or one of the configuration. It may not name code or a host: a file
    of data from elsewhere would then run code here, or send the secrets of a verifier there.
    """
    name = row.get("verifier")
    if name is None:
        return find_verifier(configured)
    terms = [term for term, _ in sum_terms(configured)] if configured.startswith(PREFIX) else []
    try:
        verifier = find_verifier(str(name))
    except BadInput as e:
        raise BadInput(f"{place}: {e}") from e
    if not is_built_in(verifier.name) and verifier.name not in (configured, *terms):
        raise BadInput(
            f"{place}: verifier {verifier.name!r} runs code or asks a host; name it in the configuration too"
        )
    return verifier


def screen(answer: Answer) -> Outcome | Task:
    """The outcome where the text alone decides it, else the task for a worker process."""
    return find_verifier(answer.verifier).screen(answer)


@lru_cache(maxsize=256)
def load_verifier(name: str) -> Verifier:
    """The verifier, ready to judge in this process. Raises `Unusable` with the reason."""
    try:
        verifier = find_verifier(name)
        verifier.load()
    except Exception as e:  # whatever a module raises while it is imported
        raise Unusable(f"verifier {name!r}: {type(e).__name__}: {e}") from e
    return verifier


def preload() -> None:
    """Load the verifiers that ask for it."""
    for name, kind in BUILT_IN.items():
        if kind.preloaded:
            find_verifier(name).load()
