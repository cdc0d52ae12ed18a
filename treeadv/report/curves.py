"""The curves of a run over its steps, for the report and for comparisons of runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from treeadv.jsonl import JsonMapping
from treeadv.report import chart
from treeadv.report.chart import Chart, Series
from treeadv.report.markup import add

MAX_POINTS = 400  # largest number of steps drawn; a longer run is drawn at every n-th step
Record = JsonMapping

# (title, unit, {key of a record: label})
CHARTS: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("Mean reward", "over the leaves trained", {"reward_mean": "reward"}),
    (
        "Outcomes in a forest",
        "share of the forests",
        {"mixed": "verified and other answers", "zero_variance": "all rewards equal"},
    ),
    ("Length of an answer", "tokens", {"answer_tokens": "mean"}),
    ("Answers cut at the limit", "share of the answers", {"truncated": "share"}),
    ("Sharing", "share of the flattened tokens not computed", {"sharing": "sharing"}),
    ("Staleness", "policy versions", {"staleness_mean": "mean", "staleness_max": "max"}),
    ("Decoding", "tokens/s", {"decode_tokens_per_s": "tokens/s"}),
    ("Prefix reuse", "share of prefix tokens found in the cache", {"prefix_reuse": "share"}),
    ("Entropy and fork threshold", "nats", {"entropy_mean": "mean entropy", "tau": "tau"}),
    ("Behaviour against learner", "KL (k3), nats", {"mismatch_kl": "KL"}),
    ("Gradient norm", "before clipping", {"grad_norm": "norm"}),
    ("Loss", "", {"loss": "loss"}),
    ("Corrected tokens", "share", {"clip_ratio": "clipped", "mask_ratio": "masked"}),
    ("Effective sample size", "share of the tokens", {"ess": "ESS"}),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectChart:
    """A chart of a field of the records whose value is an object. Each of its largest keys has one curve.

    With `shares`, each value is divided by the sum of the values of its record. A key is omitted if its total is below
    `least` times the largest total."""

    title: str
    unit: str
    key: str
    shares: bool = False
    least: float = 0.0


OBJECT_CHARTS = (
    ObjectChart(title="Verdicts", unit="share of the leaves", key="verdicts", shares=True),
    ObjectChart(title="Reward by task family", unit="mean", key="reward_by_family"),
    ObjectChart(title="Length by verdict", unit="tokens of an answer, mean", key="answer_tokens_by_verdict"),
    ObjectChart(title="Dropped tokens", unit="tokens of the run so far, by reason", key="dropped_tokens"),
    ObjectChart(title="Time of a step", unit="seconds by phase", key="seconds", least=0.01),
)


def add_curves(main: Element, shown: Sequence[Record], count: int) -> None:
    """Append the section with every curve that the run recorded, and name the curves that it did not record.

    `shown` are the records to draw. They are at even distances among the `count` records of the run."""
    steps = [r["step"] for r in shown]
    add(main, "h2", "Curves")
    if len(shown) < count:
        add(main, "p", f"The curves show {len(shown)} of {count} steps, at even distances.", class_="soft")
    grid = add(main, "div", class_="charts")
    missing = []
    for title, unit, keys in CHARTS:
        known = {k: label for k, label in keys.items() if any(r.get(k) is not None for r in shown)}
        missing += [k for k in keys if k not in known]
        if known:
            series = [Series(label=label, values=[r.get(k) for r in shown]) for k, label in known.items()]
            grid.append(chart.draw(Chart(title=title, unit=unit, series=series), steps))
    for spec in OBJECT_CHARTS:
        if not any(spec.key in r for r in shown):
            missing.append(spec.key)
        elif series := _object_series(spec, shown):
            grid.append(chart.draw(Chart(title=spec.title, unit=spec.unit, series=series), steps))
    if missing:
        add(main, "p", f"Not recorded by this run: {', '.join(missing)}.", class_="soft")


def _object_series(spec: ObjectChart, shown: Sequence[Record]) -> list[Series]:
    total: dict[str, float] = {}
    for r in shown:
        for name, amount in r.get(spec.key, {}).items():
            total[name] = total.get(name, 0.0) + amount
    largest = sorted(total, key=lambda name: -total[name])[: chart.SERIES_COLOURS]
    kept = [name for name in largest if total[name] >= spec.least * total[largest[0]]]
    return [Series(label=name.replace("_", " "), values=[_value(spec, r, name) for r in shown]) for name in kept]


def _value(spec: ObjectChart, record: Record, name: str) -> float | None:
    values: Mapping[str, float] = record.get(spec.key, {})
    if not spec.shares:
        return values.get(name)
    return values.get(name, 0) / total if (total := sum(values.values())) else None
