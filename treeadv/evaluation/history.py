"""Decisions from the evaluations of a run: which steps are evaluated, which step is best, and whether the run ends
early.

A record of an evaluation is a line of RUN/evaluations.jsonl. It has the fields `step`, `version` and `seconds` and
the fields of `Score`."""

from __future__ import annotations

from collections.abc import Sequence

from treeadv.config import Config
from treeadv.jsonl import JsonMapping

EvaluationRecord = JsonMapping


def is_due(config: Config, step: int) -> bool:
    """Return whether the weights after `step` are evaluated: at step 0, every `eval.every` steps and at the last
    step."""
    every = config.eval.every
    return bool(every) and (step % every == 0 or step == config.run.steps)


def is_durable(config: Config, step: int) -> bool:
    """Return whether a checkpoint of `step` is written. An evaluated step needs a checkpoint, because it may be the
    best step."""
    return step % config.run.checkpoint_every == 0 or step == config.run.steps or is_due(config, step)


def value(record: EvaluationRecord) -> float:
    """Return the number that compares evaluations: the mean over the sets of avg@samples."""
    return float(record["avg"]["value"])


def best(records: Sequence[EvaluationRecord]) -> EvaluationRecord | None:
    """Return the evaluation with the highest value; None if there is no evaluation. Among equal values the earliest
    counts."""
    return max(sorted(records, key=lambda r: r["step"]), key=value, default=None)


def early_end(config: Config, records: Sequence[EvaluationRecord]) -> str:
    """Return the reason to end the run before its last step; "" if there is none."""
    found, run = best(records), config.run
    if found is None:
        return ""
    if run.stop_at is not None and value(found) >= run.stop_at:
        return f"the evaluation of step {found['step']} reached run.stop_at={run.stop_at:g} with {value(found):.3f}"
    later = sum(r["step"] > found["step"] for r in records)
    if run.patience is not None and later >= run.patience:
        return (
            f"run.patience={run.patience} evaluations were not better than {value(found):.3f} of step {found['step']}"
        )
    return ""
