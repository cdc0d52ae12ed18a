"""The service times and the lengths of answers that a simulation assumes, or reads from the records of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from treeadv import seeds
from treeadv.errors import BadInput
from treeadv.jsonl import JsonObject
from treeadv.storage.run_folder import RunFolder

_NOT_MODEL = ("wait", "publish", "checkpoint")  # phases of a record in which the learner takes no step


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """The durations of the parts of a run in seconds.

    A step of an engine gives every running branch one token and takes `step` + `row` x running branches. `load` is the
    pause of an engine for new weights. A learner step takes `learner` + `learner_token` x tokens of its forests.
    `grade` is per leaf, `queue` per call of the queue, and `driver` per forest. A new generator serves after
    `start`. `failure` is the mean time in which a generator fails."""

    step: float = 0.02
    row: float = 0.0
    load: float = 0.0
    learner: float = 0.0
    learner_token: float = 0.0
    publish: float = 0.0
    checkpoint: float = 0.0
    grade: float = 0.0
    queue: float = 0.0
    driver: float = 0.0
    start: float = 0.0
    failure: float = math.inf

    def step_seconds(self, running: int) -> float:
        return self.step + self.row * running

    def learner_seconds(self, step: int, tokens: int) -> float:
        return self.learner + self.learner_token * tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Heavy-tailed lengths of answers in tokens.

    An answer has `median` x P x A tokens, at least 1 and at most `longest`. P is lognormal with `sigma_prompt` and the
    same for all answers and attempts of a prompt. A is lognormal with `sigma_answer`."""

    seed: int
    median: float
    longest: int
    sigma_prompt: float = 0.8
    sigma_answer: float = 0.5

    def of_forest(self, draw: int, attempt: int, leaves: int) -> list[int]:
        """Return the lengths of the leaves of one attempt at a draw. They depend only on the arguments and the seed."""
        prompt = seeds.generator(self.seed, "prompt", draw).gauss(0.0, self.sigma_prompt)
        rng = seeds.generator(self.seed, "answers", draw, attempt)
        drawn = (self.median * math.exp(prompt + rng.gauss(0.0, self.sigma_answer)) for _ in range(leaves))
        return [max(1, min(self.longest, round(x))) for x in drawn]


def measured(run: Path, row_share: float, skip: int) -> dict[str, float]:
    """Return the service times of a finished run by the names of `Service`.

    The first `skip` steps are not counted. The records do not say how the time of an engine step depends on the number
    of branches: `row_share` is the part of a step with all rows running that grows with the rows. Raises `BadInput` if
    the run has no steps to count."""
    folder, config = RunFolder.open(run, [])
    records = folder.records()
    if len(records) <= skip:
        raise BadInput(f"{run}: the run has {len(records)} steps; take fewer than that with --skip {skip}")
    before, counted = records[skip - 1] if skip else None, records[skip:]

    def total(name: str) -> float:
        """Return the increase of a total of the run over the counted steps."""
        return float(counted[-1][name] - (before[name] if before else 0))

    learner = sum(s for r in counted for name, s in r["seconds"].items() if name not in _NOT_MODEL)
    full = config.generator.rows * sum(r["generator_busy_s"] for r in counted) / total("tokens_generated")
    return {
        "step": full * (1 - row_share),
        "row": full * row_share / config.generator.rows,
        "learner_token": learner / total("tokens_trained"),
        "publish": _mean(counted, "publish"),
        "checkpoint": _mean(counted, "checkpoint"),
    }


def _mean(records: Sequence[JsonObject], phase: str) -> float:
    """Return the mean seconds of a phase over the records that have the phase; 0 if none has."""
    found = [r["seconds"][phase] for r in records if r["seconds"].get(phase)]
    return sum(found) / len(found) if found else 0.0
