"""The record of a step in metrics.jsonl, and the summary of a run in summary.json. Times are wall-clock seconds."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING

from treeadv.evaluation.history import best, value
from treeadv.jsonl import JsonMapping, JsonObject
from treeadv.storage.run_folder import RunFolder

if TYPE_CHECKING:
    from treeadv.learning.report import StepReport

ENGINE_TOTALS = ("tokens_generated", "prompt_tokens", "cached_tokens")
_NOT_COPIED = (
    "staleness",
    "publication_lag",
    "seconds",
    "tokens",
    "expanded_tokens",
    "nonfinite_batch",
    "answers",
)  # fields of `StepReport` that the record renames or leaves out


@dataclass(slots=True)
class Totals:
    """Token counts of the run up to a step."""

    counts: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys((*ENGINE_TOTALS, "tokens_trained", "tokens_expanded"), 0)
    )

    @classmethod
    def of(cls, record: JsonMapping | None) -> Totals:
        """Return the totals of a record, or zeros for None."""
        totals = cls()
        if record:
            totals.counts = {name: record[name] for name in totals.counts}
        return totals

    def add(self, drawn: Mapping[str, float], report: StepReport) -> None:
        """Add one step: the tokens that the engines drew (`ENGINE_TOTALS`) and the tokens that the learner trained."""
        for name in ENGINE_TOTALS:
            self.counts[name] += drawn[name]
        self.counts["tokens_trained"] += report.tokens
        self.counts["tokens_expanded"] += report.expanded_tokens


def step_record(
    *,
    step: int,
    elapsed: float,
    duration: float,
    report: StepReport,
    totals: Totals,
    drawn: Mapping[str, float],
    counts: JsonMapping,
    phases: Mapping[str, float],
) -> JsonObject:
    """Return the record of one step.

    `drawn` holds the engines' counts since the last record, with `busy_seconds` and `tau`. `counts` holds the figures
    of the queue (`treeadv.replay.figures.figures`). `duration` is the time since the last record, `elapsed` the time
    since the start of the run."""
    learner = {name: value for name, value in asdict(report).items() if name not in _NOT_COPIED}
    record = {
        "step": step, "elapsed_s": elapsed, **learner, **totals.counts,
        **asdict(report.answers),
        "forests": dict(counts["states"]), "admitted": counts["admitted"]["forests"],
        "law_error": sum(abs(error) for error in counts["law_error"].values()),
        "dropped": {reason: n["forests"] for reason, n in counts["dropped"].items()},
        "dropped_tokens": {reason: n["tokens"] for reason, n in counts["dropped"].items()},
        "sharing": 1 - report.tokens / report.expanded_tokens,
        "staleness_mean": fmean(report.staleness), "staleness_max": max(report.staleness),
        "publication_lag_mean": fmean(report.publication_lag), "publication_lag_max": max(report.publication_lag),
        "tau": drawn["tau"], "decode_tokens_per_s": drawn["tokens_generated"] / duration,
        "generator_busy_s": drawn["busy_seconds"],
        "seconds": {**phases, **report.seconds},
    }  # fmt: skip
    if drawn["prompt_tokens"]:  # 0 if no branch started in this step
        record["prefix_reuse"] = drawn["cached_tokens"] / drawn["prompt_tokens"]
    return record


def write_summary(folder: RunFolder, final_states: Mapping[str, int] | None, last_step: float = math.inf) -> JsonObject:
    """Compute the figures of the run up to `last_step` from its records, and write them to summary.json. `final_states`
    is the number of forests in each state after the last checkpoint."""
    rewards, staleness, staleness_max = array("d"), 0.0, 0
    seconds: Counter[str] = Counter()
    last: JsonObject = {}
    for last in folder.shown_records(last_step):  # a long run has more records than memory
        rewards.append(last["reward_mean"])
        staleness += last["staleness_mean"]
        staleness_max = max(staleness_max, last["staleness_max"])
        seconds.update(last["seconds"])
        seconds["generators_busy"] += last["generator_busy_s"]
    if not last:
        return {"steps": 0}
    fifth = max(1, len(rewards) // 5)
    busy = seconds.pop("generators_busy")
    summary = {
        "steps": last["step"],
        "elapsed_s": last["elapsed_s"],
        "reward_first_fifth": fmean(rewards[:fifth]),
        "reward_last_fifth": fmean(rewards[-fifth:]),
        "tokens_generated": last["tokens_generated"],
        "tokens_trained": last["tokens_trained"],
        "tokens_expanded": last["tokens_expanded"],
        "sharing_trained": 1 - last["tokens_trained"] / last["tokens_expanded"],
        # 0 tokens if every generator died before its first report
        "prefix_reuse": last["cached_tokens"] / max(1, last["prompt_tokens"]),
        "staleness_mean": staleness / len(rewards),
        "staleness_max": staleness_max,
        "seconds": {**dict(sorted(seconds.items())), "generators_busy": busy},
        "forests": dict(final_states) if final_states else last["forests"],
        "run": str(folder.path),
    }
    if found := best(folder.evaluations()):
        summary["evaluation_best"] = {"step": found["step"], "value": value(found)}
    folder.write("summary.json", summary)
    return summary
