"""The inputs and outputs of verifiers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import SupportsFloat, cast

from treeadv.forest import UNJUDGED, Verdict
from treeadv.jsonl import JsonObject

MAX_DETAIL = 300  # longest detail in characters; the rest is cut off
MAX_PARTS = 16  # largest number of named parts of a reward
_RETURNABLE = {v.name.lower(): v for v in Verdict if v not in (Verdict.UNGRADED, Verdict.ABORTED)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One response to grade.

    `gold` is the gold answer. `verifier` is a name of `treeadv.rewards.verifiers.registry`. `meta` is the result of
    `Verifier.meta` for the data line."""

    response: str
    gold: str
    verifier: str
    meta: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grade:
    """A verdict with its reward and reason.

    `detail` is a short reason and never contains the complete answer. `parts` are named components of the reward. The
    parts become metrics and do not change the reward."""

    verdict: Verdict
    reward: float
    detail: str = ""
    parts: Mapping[str, float] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """A grade with its duration.

    `seconds` counts from the time at which a worker takes the answer; 0.0 for an answer that needs no worker."""

    verdict: Verdict
    reward: float
    seconds: float
    detail: str
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A task for a worker process. `verifier` is the name of the verifier, and `text` is the part of the response to
    judge.

    The worker sets `seconds`, the time after which the worker interrupts the verifier.
    """

    verifier: str
    gold: str
    text: str
    meta: str = ""
    seconds: float = math.inf


def verified(detail: str = "") -> Grade:
    return Grade(verdict=Verdict.VERIFIED, reward=1.0, detail=detail)


def wrong(detail: str = "") -> Grade:
    return Grade(verdict=Verdict.WRONG, reward=0.0, detail=detail)


def unparsed(detail: str) -> Grade:
    return Grade(verdict=Verdict.UNPARSED, reward=0.0, detail=detail)


def refused(detail: str) -> Grade:
    return Grade(verdict=Verdict.REFUSED, reward=0.0, detail=detail)


def crashed(detail: str) -> Grade:
    return Grade(verdict=Verdict.CRASH, reward=0.0, detail=detail)


def scored(score: float, detail: str = "") -> Grade:
    """Return the grade for a score with partial credit. The reward is the score; a score of at least 1 is VERIFIED.

    Raises `ValueError` for a score that is not finite."""
    if not math.isfinite(score):
        raise ValueError(f"the score {score} is not a finite number")
    return Grade(verdict=Verdict.VERIFIED if score >= 1.0 else Verdict.WRONG, reward=score, detail=detail)


def share(score: float) -> float:
    """Return a score in [0, 1]. Raises `ValueError` for any other value: the text of the answer caused that value."""
    if not 0.0 <= (value := float(score)) <= 1.0:
        raise ValueError(f"the score {value!r} is not in [0, 1]")
    return value


def grade_of(result: object) -> Grade:
    """Return the grade for the result of a user's function or service: a number, a bool, or a mapping with `reward`.

    A mapping may have a `verdict` (upper or lower case) and a `detail`. Without a verdict a reward of 1 or more is
    VERIFIED. The other entries of a mapping are the named parts and must be numbers. Raises `ValueError` with the
    reason for any other result."""
    if not isinstance(result, Mapping):
        return scored(_number("the result", result))
    if "reward" not in result:
        raise ValueError(f"the result has no 'reward' (it has {', '.join(map(repr, result)) or 'nothing'})")
    grade = scored(_number("the reward", result["reward"]), str(result.get("detail") or ""))
    parts = {
        str(k): _number(f"the part {k!r}", v) for k, v in result.items() if k not in ("reward", "verdict", "detail")
    }
    if len(parts) > MAX_PARTS:
        raise ValueError(f"the result has {len(parts)} parts; at most {MAX_PARTS} are allowed")
    verdict = grade.verdict
    if (name := result.get("verdict")) is not None:
        if str(name).lower() not in _RETURNABLE:
            raise ValueError(f"the verdict {name!r} is unknown: use {', '.join(_RETURNABLE)}")
        verdict = _RETURNABLE[str(name).lower()]
    return Grade(verdict=verdict, reward=0.0 if verdict in UNJUDGED else grade.reward, detail=grade.detail, parts=parts)


def to_message(grade: Grade) -> JsonObject:
    """Return the grade as JSON-able values."""
    detail = grade.detail[:MAX_DETAIL].encode("utf-8", "replace").decode()
    return {"verdict": grade.verdict.name, "reward": grade.reward, "detail": detail, "parts": dict(grade.parts)}


def from_message(message: object) -> Grade:
    """Return the grade of a message of `to_message`. Raises `ValueError` for any other message."""
    if not isinstance(message, dict) or message.keys() != {"verdict", "reward", "detail", "parts"}:
        raise ValueError("the reply is not a grade")
    if not isinstance(message["parts"], dict):
        raise ValueError("the parts of the reply are not an object")
    grade = grade_of({**message["parts"], "reward": message["reward"], "verdict": message["verdict"]})
    detail = str(message["detail"])[:MAX_DETAIL].encode("utf-8", "replace").decode()
    return Grade(verdict=grade.verdict, reward=grade.reward, detail=detail, parts=grade.parts)


def _number(what: str, value: object) -> float:
    try:
        number = float(cast(SupportsFloat, value)) if not isinstance(value, str | bytes) else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{what} is {_short(value)}, not a finite number")
    return number


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
