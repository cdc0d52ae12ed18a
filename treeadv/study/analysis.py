"""Computes the analysis that the file of a study describes: figures of each row, and a verdict for each claim."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Literal

import numpy as np

from treeadv.errors import BadInput
from treeadv.study.results import Result, read_result
from treeadv.study.spec import HIGHER_IS_BETTER, Cell, Comparison, Study

BOOTSTRAPS = 10_000
ClaimVerdict = Literal["supported", "refuted", "undecided"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonResult:
    """The numbers of one comparison.

    `difference` is the mean of the figure of `arm` minus that of `against` over the seeds that have both. `p` is the
    p-value of the study's test. `p_holm` is the p-value after Holm's correction over all comparisons. Both are NaN if
    there are fewer than two pairs or if all differences are equal.
    """

    comparison: Comparison
    pairs: int
    seeds: int
    arm_mean: float
    against_mean: float
    difference: float
    spread: float  # standard deviation of the differences
    interval: tuple[float, float]  # 95 % bootstrap interval of the mean difference
    p_t: float
    p_wilcoxon: float
    p: float
    p_holm: float
    verdict: ClaimVerdict
    note: str


def read_cells(study: Study, home: Path) -> dict[tuple[str, int], Result]:
    """Return the result of each cell by (row, seed). A cell without a result file has the status `missing`."""
    out = {}
    for cell in study.cells:
        out[cell.row, cell.seed] = read_result(home, cell) or _missing(cell)
    return out


def _missing(cell: Cell) -> Result:
    return {"row": cell.row, "seed": cell.seed, "status": "missing", "reason": "the run is not finished"}


def curve(result: Result, key: str = "accuracy") -> tuple[list[float], list[float]]:
    """Return (generated tokens, values of `key`), with one entry for each evaluation on the development problems."""
    return [x["tokens_generated"] for x in result["looks"]], [x[key] for x in result["looks"]]


def tokens_to(result: Result, accuracy: float) -> float:
    """Return the generated tokens at which the development curve first reaches `accuracy`, or infinity.

    The curve is linear between two evaluations."""
    x, y = curve(result)
    for i, value in enumerate(y):
        if value >= accuracy:
            if i == 0:
                return x[0]
            return x[i - 1] + (x[i] - x[i - 1]) * (accuracy - y[i - 1]) / (value - y[i - 1])
    return math.inf


def metric(study: Study, result: Result, name: str, tokens: float) -> float:
    """Return one figure of a finished cell. dev_accuracy_at_tokens is the accuracy at `tokens` generated tokens."""
    if name == "test_accuracy":
        return float(result["test"]["accuracy"])
    if name == "dev_accuracy":
        return float(result["looks"][-1]["accuracy"])
    if name == "dev_accuracy_at_tokens":
        return float(np.interp(tokens, *curve(result)))
    if name == "tokens_to_target":
        return tokens_to(result, study.analysis.target_accuracy)
    if name == "tokens_generated":
        return float(result["series"]["tokens_generated"][-1])
    if name == "answer_tokens":
        return float(result["test"]["tokens_mean"])
    if name == "mixed_outcomes":
        return 1.0 - fmean(result["series"]["zero_variance"])
    raise BadInput(f"analysis: metric {name!r} is unknown; use one of those in docs/studies.md")


def common_tokens(cells: Sequence[Result]) -> float:
    """Return the largest number of generated tokens that every finished cell reached, or NaN if none is finished."""
    return min((c["series"]["tokens_generated"][-1] for c in cells if c["status"] == "done"), default=math.nan)


def compare(study: Study, cells: dict[tuple[str, int], Result]) -> list[ComparisonResult]:
    """Return the outcome of each comparison of the study, with Holm's correction over all comparisons."""
    raw = [_paired(study, cells, c) for c in study.analysis.comparisons]
    adjusted = holm([o.p for o in raw])
    return [_judged(study, o, p) for o, p in zip(raw, adjusted, strict=True)]


def _paired(study: Study, cells: dict[tuple[str, int], Result], c: Comparison) -> ComparisonResult:
    pairs = [(cells[c.arm, seed], cells[c.against, seed]) for seed in study.seeds]
    done = [(a, b) for a, b in pairs if a["status"] == b["status"] == "done"]
    values = []
    for a, b in done:
        tokens = common_tokens([a, b])
        values.append((metric(study, a, c.metric, tokens), metric(study, b, c.metric, tokens)))
    censored = sum(math.isinf(x) or math.isinf(y) for x, y in values)
    finite = [(x, y) for x, y in values if math.isfinite(x) and math.isfinite(y)]
    note = f"{censored} of {len(values)} pairs never reach the target and are left out" if censored else ""
    difference = np.array([x - y for x, y in finite])
    p_t, p_wilcoxon, interval = _tests(difference)
    return ComparisonResult(
        comparison=c, pairs=len(finite), seeds=len(study.seeds),
        arm_mean=_mean([x for x, _ in finite]), against_mean=_mean([y for _, y in finite]),
        difference=_mean(difference.tolist()), spread=_std(difference.tolist()), interval=interval,
        p_t=p_t, p_wilcoxon=p_wilcoxon, p=p_t if study.analysis.test == "paired_t" else p_wilcoxon, p_holm=math.nan,
        verdict="undecided", note=note,
    )  # fmt: skip


def _tests(difference: np.ndarray) -> tuple[float, float, tuple[float, float]]:
    """Return (p of the paired t-test, p of Wilcoxon's signed ranks, 95 % percentile bootstrap interval of the mean).

    The p-values are NaN for fewer than two differences and for equal differences."""
    if len(difference) < 2 or np.ptp(difference) == 0:
        value = float(difference.mean()) if len(difference) else math.nan
        return math.nan, math.nan, (value, value)
    try:
        from scipy import stats
    except ImportError as e:
        raise BadInput("treeadv study report: scipy is not installed (pip install 'treeadv[study]')") from e
    t = float(stats.ttest_1samp(difference, 0.0).pvalue)
    wilcoxon = float(stats.wilcoxon(difference).pvalue)
    found = stats.bootstrap(
        (difference,), np.mean, n_resamples=BOOTSTRAPS, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return t, wilcoxon, (float(found.low), float(found.high))


def holm(p: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values in the order of `p`. A NaN stays NaN, and counts as a comparison."""
    order = sorted(range(len(p)), key=lambda i: (math.isnan(p[i]), p[i]))
    out, running = [math.nan] * len(p), 0.0
    for rank, i in enumerate(order):
        if not math.isnan(p[i]):
            running = max(running, min(1.0, (len(p) - rank) * p[i]))
            out[i] = running
    return out


def _judged(study: Study, o: ComparisonResult, p_holm: float) -> ComparisonResult:
    """Return the outcome with its verdict. It is undecided unless the difference is significant after correction.

    A significant difference supports the claim in the claimed direction and refutes it in the other direction."""
    better = o.difference > 0 if o.comparison.metric in HIGHER_IS_BETTER else o.difference < 0
    verdict: ClaimVerdict = "undecided"
    if p_holm < study.analysis.alpha:
        verdict = "supported" if better else "refuted"
    return ComparisonResult(
        **{**{f: getattr(o, f) for f in ComparisonResult.__dataclass_fields__}, "p_holm": p_holm, "verdict": verdict}
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSummary:
    """One row of the table. `figures` holds (mean, standard deviation) over the finished seeds."""

    name: str
    done: int
    failed: int
    missing: int
    reached: int  # number of seeds that reach the target accuracy
    tokens_to_target: float  # median over all finished seeds; infinite if half of them never reach the target
    figures: dict[str, tuple[float, float]]


def summarise(study: Study, cells: dict[tuple[str, int], Result]) -> list[RowSummary]:
    """Return the rows of the table in the order of the file of the study."""
    tokens = common_tokens(list(cells.values()))
    rows = []
    for name in study.rows:
        mine = [cells[name, seed] for seed in study.seeds]
        done = [c for c in mine if c["status"] == "done"]
        reach = [tokens_to(c, study.analysis.target_accuracy) for c in done]
        names = ("test_accuracy", "dev_accuracy", "dev_accuracy_at_tokens", "tokens_generated", "answer_tokens",
                 "mixed_outcomes")  # fmt: skip
        values = {n: [metric(study, c, n, tokens) for c in done] for n in names}
        values["sharing"] = [fmean(c["series"]["sharing"]) for c in done]
        values["seconds"] = [c["seconds"] for c in done]
        rows.append(RowSummary(
            name=name, done=len(done), failed=sum(c["status"] == "failed" for c in mine),
            missing=sum(c["status"] == "missing" for c in mine), reached=sum(math.isfinite(x) for x in reach),
            tokens_to_target=median(reach) if reach else math.nan,
            figures={k: (_mean(v), _std(v)) for k, v in values.items()},
        ))  # fmt: skip
    return rows


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else math.nan


def _std(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else math.nan
