"""What goes into a verifier and what comes out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from treeadv.forest import UNJUDGED, Verdict

MAX_DETAIL = 300  # characters of a reason that are kept
MAX_PARTS = 16  # named parts of a reward that are kept
_RETURNABLE = {v.name.lower(): v for v in Verdict if v not in (Verdict.UNGRADED, Verdict.ABORTED)}


@dataclass(frozen=True, slots=True)
class Answer:
    """One response to grade. `gold` is the right answer, `verifier` a name of `treeadv.rewards.verifiers.registry`,
    `meta` what `Verifier.meta` made of the data line."""

    response: str
    gold: str
    verifier: str
    meta: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A verdict with its reward and its reason. `detail` is short and never holds the whole answer. `parts` names what
    the reward is made of; the parts become metrics and do not change the reward."""

    verdict: Verdict
    reward: float
    detail: str = ""
    parts: Mapping[str, float] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """An outcome as the pool hands it back. `seconds` counts from when a worker took the item; 0.0 where no worker was
    needed."""

    verdict: Verdict
    reward: float
    seconds: float
    detail: str
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Task:
    """What a worker process judges: `verifier` is the name of the verifier, `text` the part of the response that it
    reads.

    The worker sets `seconds`, the time after which it interrupts the verifier.
    """

    verifier: str
    gold: str
    text: str
    meta: str = ""
    seconds: float = math.inf


def verified(detail: str = "") -> Outcome:
    return Outcome(Verdict.VERIFIED, 1.0, detail)


def wrong(detail: str = "") -> Outcome:
    return Outcome(Verdict.WRONG, 0.0, detail)


def unparsed(detail: str) -> Outcome:
    return Outcome(Verdict.UNPARSED, 0.0, detail)


def refused(detail: str) -> Outcome:
    return Outcome(Verdict.REFUSED, 0.0, detail)


def crashed(detail: str) -> Outcome:
    return Outcome(Verdict.CRASH, 0.0, detail)


def scored(score: float, detail: str = "") -> Outcome:
    """The outcome of a scorer with partial credit: the reward is the score, and only a full score is VERIFIED. It must
    be finite."""
    if not math.isfinite(score):
        raise ValueError(f"the score {score} is not a finite number")
    return Outcome(Verdict.VERIFIED if score >= 1.0 else Verdict.WRONG, score, detail)


def share(score: Any) -> float:
    """A score in [0, 1]. Raises `ValueError` for any other, which only the text of the answer can have caused."""
    if not 0.0 <= (value := float(score)) <= 1.0:
        raise ValueError(f"the score {value!r} is not in [0, 1]")
    return value


def outcome_of(result: Any) -> Outcome:
    """The outcome of what a user's function or a service returns: a number, a bool, or a mapping with `reward`.

    A mapping may name a `verdict` (in any case; otherwise a reward of 1 or more is VERIFIED) and a `detail`; its other
    entries are the named parts and must be numbers. Raises `ValueError` that says what is wrong."""
    if not isinstance(result, Mapping):
        return scored(_number("the result", result))
    if "reward" not in result:
        raise ValueError(f"the result has no 'reward' (it has {', '.join(map(repr, result)) or 'nothing'})")
    outcome = scored(_number("the reward", result["reward"]), str(result.get("detail") or ""))
    parts = {
        str(k): _number(f"the part {k!r}", v) for k, v in result.items() if k not in ("reward", "verdict", "detail")
    }
    if len(parts) > MAX_PARTS:
        raise ValueError(f"the result has {len(parts)} parts; at most {MAX_PARTS} are kept")
    verdict = outcome.verdict
    if (name := result.get("verdict")) is not None:
        if str(name).lower() not in _RETURNABLE:
            raise ValueError(f"the verdict {name!r} is unknown: use {', '.join(_RETURNABLE)}")
        verdict = _RETURNABLE[str(name).lower()]
    return Outcome(verdict, 0.0 if verdict in UNJUDGED else outcome.reward, outcome.detail, parts)


def to_message(outcome: Outcome) -> dict[str, Any]:
    """The outcome as JSON values."""
    detail = outcome.detail[:MAX_DETAIL].encode("utf-8", "replace").decode()
    return {"verdict": outcome.verdict.name, "reward": outcome.reward, "detail": detail, "parts": dict(outcome.parts)}


def from_message(message: Any) -> Outcome:
    """Invert `to_message`. Raises `ValueError` for a message that no verifier can have written."""
    if not isinstance(message, dict) or message.keys() != {"verdict", "reward", "detail", "parts"}:
        raise ValueError("the reply is not an outcome")
    outcome = outcome_of({"reward": message["reward"], "verdict": message["verdict"], **dict(message["parts"])})
    detail = str(message["detail"])[:MAX_DETAIL].encode("utf-8", "replace").decode()
    return Outcome(outcome.verdict, outcome.reward, detail, outcome.parts)


def _number(what: str, value: Any) -> float:
    try:
        number = float(value) if not isinstance(value, str | bytes) else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{what} is {_short(value)}, not a finite number")
    return number


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
