"""Builds panels from the table of metrics. Expressions, units and descriptions come from treeadv.metrics.

A panel shows a counter as the sum of its rates over the instances of a run. It shows a gauge as the mean over the
instances, and a histogram as median and 95th percentile. The queries run in Prometheus 2.42 and newer.
"""

from __future__ import annotations

from dataclasses import dataclass

from grafana_foundation_sdk.builders import common, prometheus, stat, timeseries
from grafana_foundation_sdk.models.common import LegendDisplayMode, LegendPlacement, TooltipDisplayMode
from grafana_foundation_sdk.models.dashboard import DataSourceRef, DynamicConfigValue, GridPos

from treeadv.metrics import BY_LABEL, TABLE, Metric

SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
RUN = 'run=~"$run"'
WINDOW = "$__rate_interval"

_BY_NAME = {m.name: m for m in TABLE}
# Grafana's names of units. Any other unit is a suffix; the suffix of tokens has a prefix k, M or G. A rate of seconds
# is a share of the time.
_UNITS = {"1": "short", "seconds": "s", "bytes": "bytes", "ratio": "percentunit"}
_RATES = {"seconds": "percentunit", "bytes": "Bps"}


@dataclass(frozen=True, slots=True)
class Query:
    """A PromQL expression with its legend, Grafana's unit and a description."""

    expr: str
    legend: str
    unit: str
    help: str


@dataclass(frozen=True, slots=True)
class Panel:
    """A panel. A query whose unit differs from that of the first query has its own axis. With `big`, the last value is
    shown as a number."""

    title: str
    queries: tuple[Query, ...]
    big: bool = False


def unit_of(measured: str, each_second: bool = False) -> str:
    """Return Grafana's name of a unit of treeadv.metrics.UNITS. With `each_second`, return the name of that unit per
    second."""
    known, name = (_RATES, f"{measured}/s") if each_second else (_UNITS, measured)
    return known.get(measured) or f"{'si' if measured.startswith('tokens') else 'suffix'}: {name}"


def rate(name: str, *by: str, unit: str = "") -> Query:
    """Return the increase per second of a counter, summed over the instances of a run. `unit` selects the series by the
    label `unit`, which a counter has if its series count different things."""
    metric = _metric(name, "counter", by, unit)
    selected = f'{RUN}, unit="{unit}"' if unit else RUN
    expression = f"sum by ({_by(by)}) (rate({name}{{{selected}}}[{WINDOW}]))"
    return Query(expression, _legend(metric, by, unit), unit_of(unit or metric.measures, each_second=True), metric.help)


def gauge(name: str, *by: str, over: str = "avg", unit: str = "") -> Query:
    """Return a gauge, aggregated with `over` over the instances of a run. `unit` selects the series by the label
    `unit`."""
    metric = _metric(name, "gauge", by, unit)
    selected = f'{RUN}, unit="{unit}"' if unit else RUN
    expression = f"{over} by ({_by(by)}) ({name}{{{selected}}})"
    return Query(expression, _legend(metric, by, unit), unit_of(unit or metric.measures), metric.help)


def quantiles(name: str, *by: str) -> tuple[Query, ...]:
    """Return the median and the 95th percentile of a histogram."""
    metric = _metric(name, "histogram", by)
    unit = unit_of(metric.measures)
    inner = f"sum by ({_by(by, 'le')}) (rate({name}_bucket{{{RUN}}}[{WINDOW}]))"
    legend = "".join(f"{{{{{label}}}}} " for label in by)
    return tuple(
        Query(f"histogram_quantile({q}, {inner})", f"{{{{run}}}} {legend}{text}", unit, metric.help)
        for q, text in ((0.5, "median"), (0.95, "95 %"))
    )


def ratio(numerator: str, denominator: str, legend: str, text: str, rest: bool = False) -> Query:
    """Return rate(part) / rate(whole), or 1 minus this ratio with `rest`. There is no value while `whole` does not
    increase."""
    for name in (numerator, denominator):
        _metric(name, "counter", ())
    above, below = (f"sum by (run) (rate({name}{{{RUN}}}[{WINDOW}]))" for name in (numerator, denominator))
    share = f"{above} / ({below} > 0)"
    return Query(f"1 - {share}" if rest else share, f"{{{{run}}}} {legend}", "percentunit", text)


def panel(spec: Panel, number: int, at: GridPos) -> stat.Panel | timeseries.Panel:
    """Return the builder of a panel with its id and its place on the grid."""
    unit = spec.queries[0].unit
    build: stat.Panel | timeseries.Panel = stat.Panel() if spec.big else _lines()
    build = build.id(number).title(spec.title).unit(unit).datasource(SOURCE).grid_pos(at)
    build = build.description("\n".join(dict.fromkeys(f"{q.help}." for q in spec.queries)))
    for ref, query in zip("ABCDEFGH", spec.queries, strict=False):
        target = prometheus.Dataquery().expr(query.expr).legend_format(query.legend).ref_id(ref).datasource(SOURCE)
        build = build.with_target(target.instant() if spec.big else target.range())
        if query.unit != unit:
            build = build.override_by_query(ref, [DynamicConfigValue(id_val="unit", value=query.unit)])
    return build


def _lines() -> timeseries.Panel:
    legend = (
        common.VizLegendOptions()
        .show_legend(True)
        .display_mode(LegendDisplayMode.LIST)
        .placement(LegendPlacement.BOTTOM)
    )
    return timeseries.Panel().legend(legend).tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))


def _metric(name: str, kind: str, by: tuple[str, ...], unit: str = "") -> Metric:
    metric = _BY_NAME[name]
    if (metric.measures == BY_LABEL) != bool(unit):
        raise ValueError(f"{name} measures {metric.measures}: its label unit is to be selected in this case only")
    unknown = set(by) - {*metric.labels, "instance"}
    if metric.kind != kind or unknown:
        raise ValueError(f"{name} is a {metric.kind} with labels {metric.labels}, not a {kind} with {sorted(unknown)}")
    return metric


def _by(by: tuple[str, ...], *more: str) -> str:
    return ", ".join(("run", *by, *more))


def _legend(metric: Metric, by: tuple[str, ...], unit: str = "") -> str:
    short = metric.name.removeprefix("treeadv_").removesuffix("_total").replace("_", " ")
    return " ".join(("{{run}}", *(f"{{{{{label}}}}}" for label in by), *([unit] if unit else []), short))
