"""Verifiers by name, their heavy halves: they run in a worker process only, under its alarm, its parent's clock and its memory limit."""

from __future__ import annotations

import importlib
import json
import logging
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from itertools import product
from typing import Any

from treeadv.forest import Verdict
from treeadv.rewards.judgement import Outcome, Task, scored, unparsed, verified, wrong

Judge = Callable[[Task], Outcome]
REASONING_GYM = "reasoning-gym:"  # and the family: the kind of a task, of which the verifier `reasoning-gym` makes one for each family
_NAMED = {v.name.lower(): v for v in Verdict if v is not Verdict.UNGRADED}


class Unusable(Exception):
    """The verifier itself cannot be used (missing module, unknown data set): a fault of the configuration, not of an answer."""


@lru_cache(maxsize=256)
def load(kind: str) -> Judge:
    """The judge of a resolved verifier, its imports done. Raises `Unusable` with the reason."""
    try:
        if kind == "math":
            return _math()
        if evaluates(kind):
            return _reasoning_gym(kind.removeprefix(REASONING_GYM))
        if kind.startswith(("http://", "https://")):
            return lambda task: _remote(kind, task)
        return _function(kind)
    except Exception as e:  # whatever a module raises while it is imported
        raise Unusable(f"verifier {kind!r}: {type(e).__name__}: {e}") from e


def _math() -> Judge:
    import math_verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own time-out is off: the worker's is on
    configs = (math_verify.LatexExtractionConfig(boxed_match_priority=0), math_verify.ExprExtractionConfig())

    @lru_cache(maxsize=2048)  # the leaves of a forest share their gold answer, and many an answer
    def parse(text: str) -> list[Any]:
        return math_verify.parse(f"\\boxed{{{text}}}", configs, parsing_timeout=None, raise_on_error=True)

    def judge(task: Task) -> Outcome:
        gold, answer = parse(task.gold), parse(task.text)
        if all(isinstance(a, str) for a in answer):
            return verified("same text") if set(gold) & set(answer) else unparsed("math-verify reads no mathematics in it")
        doubts = ["the gold answer has no mathematics"] if all(isinstance(g, str) for g in gold) else []
        for g, a in product(gold, answer):
            try:
                if math_verify.verify(g, a, timeout_seconds=None, raise_on_error=True):
                    return verified("equal")
            except MemoryError:
                raise
            except Exception as e:  # sympy cannot compare this pair of readings, which math-verify counts as unequal; another pair may be
                doubts.append(type(e).__name__)
        return wrong("not comparable: " + ", ".join(doubts) if doubts else "not equal")

    return judge


def evaluates(kind: str) -> bool:
    """Whether the verifier may evaluate the answer's text and so judges in a child: nine of reasoning-gym's scorers do, so all are."""
    return kind.startswith(REASONING_GYM)


def _reasoning_gym(family: str) -> Judge:
    from reasoning_gym.factory import DATASETS, get_score_answer_fn

    if family not in DATASETS:
        raise LookupError(f"reasoning-gym has no data set {family!r}")
    score = get_score_answer_fn(family)
    return lambda task: scored(share(score(answer=task.text, entry=json.loads(task.meta)["entry"])))


def share(score: Any) -> float:
    """A score of reasoning-gym. Anything else was put there by the answer."""
    if not 0.0 <= (value := float(score)) <= 1.0:
        raise ValueError(f"the score {value!r} is not in [0, 1]")
    return value


def _function(kind: str) -> Judge:
    module, _, name = kind.partition(":")
    function = getattr(importlib.import_module(module), name)
    if not callable(function):
        raise TypeError(f"{name} is not a function")

    def judge(task: Task) -> Outcome:
        """`function(response, gold, meta)` returns a score, a bool, or (score, detail)."""
        result = function(task.text, task.gold, task.meta)
        score, detail = result if isinstance(result, tuple) else (result, "")
        return scored(float(score), str(detail))

    return judge


def _remote(url: str, task: Task) -> Outcome:
    """POST {"response", "gold", "meta"}; the reply is {"reward": number, "detail"?: text, "verdict"?: name of a verdict}."""
    body = json.dumps({"response": task.text, "gold": task.gold, "meta": task.meta}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as reply:  # bounded by the worker's alarm
        answer = json.load(reply)
    outcome = scored(float(answer["reward"]), str(answer.get("detail", "")))
    return replace(outcome, verdict=_NAMED[answer["verdict"]]) if "verdict" in answer else outcome
