"""What goes into a verifier and what comes out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from treeadv.forest import Verdict


@dataclass(frozen=True, slots=True)
class Answer:
    """One response to grade. `gold` is the right answer, `verifier` a name of `treeadv.rewards.verifiers.registry`, `meta` JSON for it."""

    response: str
    gold: str
    verifier: str
    meta: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A verdict with its reward and its reason; `detail` is short and never holds the whole answer."""

    verdict: Verdict
    reward: float
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Judgement:
    """An outcome as the pool hands it back. `seconds` counts from when a worker took the item; 0.0 where no worker was needed."""

    verdict: Verdict
    reward: float
    seconds: float
    detail: str


@dataclass(frozen=True, slots=True)
class Task:
    """What a worker process judges: `verifier` is the name of the verifier, `text` the part of the response that it reads."""

    verifier: str
    gold: str
    text: str
    meta: str = ""


def verified(detail: str = "") -> Outcome:
    return Outcome(Verdict.VERIFIED, 1.0, detail)


def wrong(detail: str = "") -> Outcome:
    return Outcome(Verdict.WRONG, 0.0, detail)


def unparsed(detail: str) -> Outcome:
    return Outcome(Verdict.UNPARSED, 0.0, detail)


def refused(detail: str) -> Outcome:
    return Outcome(Verdict.REFUSED, 0.0, detail)


def scored(score: float, detail: str = "") -> Outcome:
    """The outcome of a scorer with partial credit: the reward is the score, and only a full score is VERIFIED. It must be finite."""
    if not math.isfinite(score):
        raise ValueError(f"the score {score} is not a finite number")
    return Outcome(Verdict.VERIFIED if score >= 1.0 else Verdict.WRONG, score, detail)


def share(score: Any) -> float:
    """A score in [0, 1]. Raises `ValueError` for any other, which only the text of the answer can have caused."""
    if not 0.0 <= (value := float(score)) <= 1.0:
        raise ValueError(f"the score {value!r} is not in [0, 1]")
    return value
