"""Tests that the rules, the dashboards and the metrics page match the metrics table, and that Prometheus's tools accept
them."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import urllib.request
from pathlib import Path
from typing import Any, get_args

import promql_parser
import pytest
import yaml

from monitoring import dashboards, events, local, pictures, reference
from monitoring.panels import gauge, rate
from tests.deploy.manifests import CHART, ROOT
from treeadv.errors import BadInput
from treeadv.forest import Verdict
from treeadv.metrics import BY_LABEL, TABLE, Exporter, Metric, Role
from treeadv.metrics import UNITS as UNITS_OF_METRICS
from treeadv.replay.ledger import UNITS
from treeadv.replay.records import DropReason

RULES = CHART / "files" / "rules" / "treeadv.yml"
UNIT_TESTS = ROOT / "tests" / "deploy" / "rules_test.yml"
MISSING = "promtool is not installed (apt-get install prometheus)"
needs_prometheus = pytest.mark.skipif(shutil.which("promtool") is None, reason=MISSING)
BOARDS = {b.name: json.loads(dashboards.rendered(b)) for b in dashboards.BOARDS}
SERIES = {m.name for m in TABLE}
SERIES |= {f"{m.name}_{end}" for m in TABLE if m.kind == "histogram" for end in ("bucket", "sum", "count")}


def rules(kind: str) -> list[dict[str, Any]]:
    return [r for g in yaml.safe_load(RULES.read_text())["groups"] for r in g["rules"] if kind in r]


def selectors(expression: str) -> set[str]:
    """Return the names of all metrics of a PromQL expression."""
    found: set[str] = set()

    def walk(node: Any) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            found.add(node.name)
        for field in ("expr", "lhs", "rhs", "param", "vector_selector"):
            if (child := getattr(node, field, None)) is not None:
                walk(child)
        for child in getattr(node, "args", None) or []:
            walk(child)

    walk(promql_parser.parse(expression))
    return found


def concrete(expression: str) -> str:
    return expression.replace("$__rate_interval", "1m").replace("$run", ".*")


def expressions(board: dict[str, Any]) -> list[str]:
    return [concrete(t["expr"]) for p in board["panels"] for t in p["targets"]]


def test_selectors_finds_every_name_of_an_expression() -> None:
    share = "1 - sum by (a) (rate(x[5m])) / on (a) group_left () (max(y) > 0)"
    found = selectors(f"{share} or histogram_quantile(0.5, z_bucket)")
    assert found == {"x", "y", "z_bucket"}


def test_rules_use_only_known_metrics() -> None:
    recorded = {r["record"] for r in rules("record")}
    used = set().union(*(selectors(r["expr"]) for r in rules("expr")))
    assert used <= SERIES | recorded


def test_every_alert_has_a_unit_test_and_a_runbook_section() -> None:
    fired = {
        case["alertname"]
        for test in yaml.safe_load(UNIT_TESTS.read_text())["tests"]
        for case in test.get("alert_rule_test", [])
        if case["exp_alerts"]
    }
    headings = re.findall(r"^## (\w+)$", (ROOT / "docs" / "runbook.md").read_text(), re.MULTILINE)
    names = [r["alert"] for r in rules("alert")]
    assert fired == set(names)
    assert headings == names
    anchors = {
        re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings
    }  # anchors as GitHub makes them
    for rule in rules("alert"):
        assert rule["labels"]["severity"] in ("critical", "warning")
        page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert page == events.RUNBOOK
        assert anchor in anchors


def test_runbook_address_is_a_page_of_the_repository() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    place = events.RUNBOOK.removeprefix(f"{project['urls']['Repository']}/blob/main/")
    assert (ROOT / place).is_file()


def matchers(expression: str) -> list[tuple[str, str]]:
    """Return the label matchers (label, value) of a PromQL expression."""
    return re.findall(r'(\w+)="([^"]*)"', expression)


def test_rules_select_only_label_values_that_the_code_sets() -> None:
    """An alert on a value that no series has would never fire."""
    known = {
        "reason": set(get_args(DropReason)),
        "unit": set(UNITS),
        "role": set(get_args(Role)),
        "verdict": {v.name.lower() for v in Verdict},
    }
    found = [pair for rule in rules("expr") for pair in matchers(rule["expr"])]
    assert {label for label, _ in found} == set(known)
    assert all(value in known[label] for label, value in found)


# Grafana's names of the units of the table: of a value, and of the rate of a counter.
SHOWN = {"1": "short", "seconds": "s", "bytes": "bytes", "ratio": "percentunit", "tokens": "si: tokens"}
SHOWN |= {"tokens/s": "si: tokens/s"}
SHOWN_RATE = {"seconds": "percentunit", "bytes": "Bps", "tokens": "si: tokens/s"}


def expected_unit(expression: str) -> str:
    """Return the unit of a query, from the table of metrics and the functions of the expression."""
    names = [n.removesuffix("_bucket") for n in selectors(expression)]
    if len(names) == 2:
        return "percentunit"  # a ratio of two queries
    (metric,) = (m for m in TABLE if m.name == names[0])
    measured = metric.measures
    if measured == BY_LABEL:
        (measured,) = (value for label, value in matchers(expression) if label == "unit")
    if "rate(" in expression and "histogram_quantile" not in expression:
        return SHOWN_RATE.get(measured, f"suffix: {measured}/s")
    return SHOWN.get(measured, f"suffix: {measured}")


@pytest.mark.parametrize("name", BOARDS)
def test_every_query_shows_the_unit_of_its_metric(name: str) -> None:
    for p in BOARDS[name]["panels"]:
        settings = p["fieldConfig"]
        own = {o["matcher"]["options"]: o["properties"][0]["value"] for o in settings.get("overrides", [])}
        for target in p["targets"]:
            shown = own.get(target["refId"], settings["defaults"]["unit"])
            assert shown == expected_unit(concrete(target["expr"])), (p["title"], target["expr"])
            assert shown != "cps"


def test_every_metric_says_what_it_measures() -> None:
    assert {m.measures for m in TABLE} <= UNITS_OF_METRICS | {"tokens/s"}
    with pytest.raises(ValueError, match="treeadv_things_done_total ends with no unit"):
        _ = Metric("treeadv_things_done_total", "counter", "driver", "Things done").measures


def test_boards_link_to_each_other_and_to_the_runbook() -> None:
    for board in BOARDS.values():
        boards, runbook = board["links"]
        assert (boards["type"], boards["includeVars"], boards["keepTime"]) == ("dashboards", True, True)
        assert set(boards["tags"]) <= set(board["tags"])
        assert (runbook["type"], runbook["url"]) == ("link", events.RUNBOOK)


EVENT_SERIES = {  # series of a run in minutes 0 to 9; the event is between minutes 4 and 5
    "Checkpoints": ('treeadv_checkpoint_seconds_count{run="a"}', "3x4 4x5"),
    "Restarts": ('treeadv_actor_restarts_total{run="a", role="reward"}', "0x4 1x5"),
    "Resumes": ('treeadv_resumes_total{run="a"}', "0x4 1x5"),
    "Scaling": ('treeadv_actors_target{run="a", role="generator"}', "2x4 3x5"),
}


@needs_prometheus
def test_every_event_is_marked_when_it_happens_and_only_then(tmp_path: Path) -> None:
    assert set(EVENT_SERIES) == {e.name for e in events.EVENTS}
    checks = []
    for event in events.EVENTS:
        series, values = EVENT_SERIES[event.name]
        labels = [f'role="{role}"' for label, role in matchers(series) if label == "role"]
        expression = event.expr.replace("$__rate_interval", "2m").replace("$run", ".*").removesuffix(" > 0")
        found = [{"labels": f"{{{', '.join(['run=' + chr(34) + 'a' + chr(34), *labels])}}}", "value": 1}]
        asks = [
            # `increase` extrapolates to the ends of the window, so its value varies. `ceil` maps any value to 1.
            {"expr": f"ceil({expression} / 10) > 0", "eval_time": f"{minute}m", "exp_samples": found if at else []}
            for minute, at in ((3, False), (5, True), (9, False))
        ]
        checks.append(
            {"interval": "1m", "input_series": [{"series": series, "values": values}], "promql_expr_test": asks}
        )
    file = tmp_path / "events.yml"
    file.write_text(yaml.safe_dump({"rule_files": [], "tests": checks}))
    out = subprocess.run(["promtool", "test", "rules", file], capture_output=True, text=True, timeout=60)
    assert out.returncode == 0, out.stdout + out.stderr


def test_every_board_marks_every_event() -> None:
    for board in BOARDS.values():
        assert [(a["name"], a["expr"]) for a in board["annotations"]["list"]] == [
            (e.name, e.expr) for e in events.EVENTS
        ]
    assert set().union(*(selectors(concrete(e.expr)) for e in events.EVENTS)) <= SERIES


@needs_prometheus
def test_promtool_accepts_the_rules_and_their_unit_tests() -> None:
    for line in (["check", "rules", "--lint=all", "--lint-fatal", RULES], ["test", "rules", UNIT_TESTS]):
        out = subprocess.run(["promtool", *line], capture_output=True, text=True, timeout=60)
        assert out.returncode == 0, out.stdout + out.stderr


@needs_prometheus
def test_promtool_accepts_the_page_of_every_exporter() -> None:
    for role in get_args(Role):
        exporter = Exporter(role)
        with urllib.request.urlopen(f"http://{exporter.serve('127.0.0.1', 0)}/metrics") as page:
            text = page.read()
        exporter.close()
        assert text.count(b"# HELP treeadv_") >= sum(m.role == role for m in TABLE)
        out = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, timeout=60)
        assert (out.returncode, out.stderr) == (0, b"")


def test_second_exporter_takes_a_following_port() -> None:
    first = Exporter("driver")
    port = int(first.serve("127.0.0.1", 0).rpartition(":")[2])
    second = Exporter("queue")
    try:
        assert port < int(second.serve("127.0.0.1", port).rpartition(":")[2]) < port + 64
    finally:
        first.close()
        second.close()


def test_exporter_on_all_interfaces_names_a_reachable_address() -> None:
    exporter = Exporter("driver")
    try:
        address = exporter.serve("0.0.0.0", 0)
        assert not address.startswith("0.0.0.0")
        assert urllib.request.urlopen(f"http://{address}/healthz").read() == b"ok\n"
    finally:
        exporter.close()


def test_dashboards_and_metrics_page_are_up_to_date() -> None:
    for board in dashboards.BOARDS:
        written = (dashboards.FOLDER / f"{board.name}.json").read_text()
        assert written == dashboards.rendered(board), "run: python -m monitoring.dashboards"
    assert {p.stem for p in dashboards.FOLDER.glob("*.json")} == set(BOARDS)
    assert reference.PAGE.read_text() == reference.page(), "run: python -m monitoring.reference"


def test_panels_cover_exactly_the_metrics_table() -> None:
    asked = set().union(*(selectors(e) for board in BOARDS.values() for e in expressions(board)))
    assert asked <= SERIES
    assert {m.name for m in TABLE} <= {name.removesuffix("_bucket") for name in asked}


@pytest.mark.parametrize("name", BOARDS)
def test_panels_have_unique_ids_and_do_not_overlap(name: str) -> None:
    panels = BOARDS[name]["panels"]
    assert len({p["id"] for p in panels}) == len(panels)
    cells = list(itertools.chain.from_iterable(_cells(p["gridPos"]) for p in panels))
    assert len(set(cells)) == len(cells)
    assert all(0 <= x < 24 for x, _ in cells)
    for p in panels:
        assert p["fieldConfig"]["defaults"]["unit"] and p["description"] and p["title"]
        assert {t["datasource"]["uid"] for t in p["targets"]} == {"${datasource}"} == {p["datasource"]["uid"]}
        assert len({t["legendFormat"] for t in p["targets"]}) == len(p["targets"])


def _cells(grid: dict[str, int]) -> itertools.product[tuple[int, int]]:
    return itertools.product(range(grid["x"], grid["x"] + grid["w"]), range(grid["y"], grid["y"] + grid["h"]))


def test_wrong_kind_or_label_of_a_metric_is_refused() -> None:
    with pytest.raises(ValueError, match="its label unit is to be selected"):
        rate("treeadv_queue_admitted_total")
    with pytest.raises(ValueError, match="is a gauge"):
        rate("treeadv_loss")
    with pytest.raises(ValueError, match="verdict"):
        gauge("treeadv_loss", "verdict")
    with pytest.raises(KeyError):
        gauge("treeadv_lost")


@needs_prometheus
@pytest.mark.skipif(
    shutil.which("amtool") is None, reason="amtool is not installed (apt-get install prometheus-alertmanager)"
)
def test_prometheus_and_alertmanager_accept_their_configuration() -> None:
    for line in (
        ["promtool", "check", "config", "--syntax-only", ROOT / "monitoring" / "prometheus.yml"],
        ["amtool", "check-config", ROOT / "monitoring" / "alertmanager.yml"],
    ):
        out = subprocess.run(line, capture_output=True, text=True, timeout=60)
        assert out.returncode == 0, out.stdout + out.stderr


def test_compose_mounts_match_the_configured_paths() -> None:
    compose = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
    mounted = {}
    for service in compose["services"].values():
        for volume in service["volumes"]:
            source, target = re.match(r"(\$\{[^}]*\}|[^:]+):([^:]+)", volume).groups()
            if source.startswith("../"):
                assert (ROOT / "deploy" / source).exists(), source
            mounted[target] = source
    prometheus = yaml.safe_load((ROOT / "monitoring" / "prometheus.yml").read_text())
    (targets,) = prometheus["scrape_configs"][0]["file_sd_configs"][0]["files"]
    assert str(Path(targets).parent) in mounted
    assert str(Path(prometheus["rule_files"][0]).parent) in mounted
    provider = yaml.safe_load((ROOT / "monitoring" / "grafana" / "dashboards.yml").read_text())["providers"][0]
    assert provider["options"]["path"] in mounted


def test_local_prometheus_names_the_missing_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match=r"no targets.json; name the folder of a run"):
        local.command([tmp_path], 9090)
    (tmp_path / "targets.json").write_text("[]")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadInput, match="apt-get install prometheus"):
        local.command([tmp_path], 9090)


def test_local_prometheus_defaults_to_the_newest_run(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no run in this folder; start one \(make train\)"):
        local.newest(tmp_path / "runs")
    for age, name in enumerate(("last", "b", "a")):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "targets.json").write_text("[]")
        os.utime(tmp_path / "runs" / name / "targets.json", (1e9 - age, 1e9 - age))
    (tmp_path / "runs" / "never-began").mkdir()
    assert local.newest(tmp_path / "runs").name == "last"


def test_make_monitoring_starts_without_a_run_name(tmp_path: Path) -> None:
    """The command of `make monitoring` runs here with a substitute for prometheus that prints its arguments."""
    (tmp_path / "runs" / "one").mkdir(parents=True)
    (tmp_path / "runs" / "one" / "targets.json").write_text("[]")
    (tmp_path / "prometheus").write_text("#!/bin/sh\necho $1\n")
    (tmp_path / "prometheus").chmod(0o755)
    variables = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-m", "monitoring.local"]
    out = subprocess.run(line, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=60)
    assert out.returncode == 0, out.stderr
    assert "runs/one/prometheus/prometheus.yml" in out.stdout


def test_missing_label_is_empty_in_the_legend() -> None:
    assert pictures._legend("{{run}} {{role}} actors", {"role": "generator"}) == "generator actors"
