"""Tests the real pipeline with a real Prometheus: every query of a panel and every recording rule returns data."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from math import isnan
from pathlib import Path

import pytest
import yaml

from monitoring import dashboards, events
from tests.deploy import servers
from tests.deploy.manifests import ROOT
from tests.deploy.test_monitoring import concrete, rules
from treeadv.metrics import TABLE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(servers.missing()), reason=f"not installed: {servers.missing()}"),
]

STEPS = 8  # number of steps before the queries, so that checkpoints and acknowledgements occur
SCRAPES = 10  # number of scrapes of the driver before the queries, because a rate needs several
# These series exist only after a loss or a drop; a healthy run has none.
OF_FAULTS = {"treeadv_queue_dropped_total", "treeadv_actor_restarts_total"}
# These series exist only with held-out problems or with a reward of named parts, which the run does not have.
OF_OPTIONS = {m.name for m in TABLE if m.name.startswith("treeadv_eval")} | {"treeadv_reward_part_mean"}
# Counters that stay at zero in a healthy run, or that depend on chance.
QUIET = OF_FAULTS | {
    "treeadv_idle_updates_total",
    "treeadv_clipped_gradients_total",
    "treeadv_weight_sync_failures_total",
    "treeadv_branches_failed_total",
    "treeadv_reward_worker_restarts_total",
    "treeadv_nonfinite_updates_total",
    "treeadv_resumes_total",
}


def recipe(model: Path, root: Path) -> dict:
    return {
        "run": {"root": str(root), "name": "watched", "steps": 100000, "checkpoint_every": 3},
        "model": {"path": str(model)},
        "task": {
            "verifier": "tests.parity:has_even_sum",  # some answers are right, so that the updates have gradients
            "families": [
                {"name": "chain_sum", "options": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}}
            ],
        },
        "sampling": {"leaves": 4, "max_tokens": 12, "min_gap": 1, "tau": 0.5},
        "generator": {"count": 2, "forests": 4, "cpus": 0.1, "threads": 1},
        "reward": {"cpus": 0.1},
        "learner": {"forests_per_step": 2, "cpus": 0.1, "threads": 1, "dtype": "float32"},
    }


@pytest.fixture(scope="module")
def watched(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """Start a run of a tiny model while Prometheus scrapes it. Return its folder and the address of Prometheus after
    STEPS steps."""
    folder = tmp_path_factory.mktemp("live")
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe(tiny_model, folder)))
    run = folder / "watched"
    with (folder / "log").open("w") as log:
        line = [str(Path(sys.executable).with_name("treeadv")), "train", "--config", str(file)]
        paths = os.environ | {"PYTHONPATH": str(ROOT)}  # the verifier is a function of the tests
        process = subprocess.Popen(line, stdout=log, stderr=subprocess.STDOUT, env=paths)
        try:
            servers.eventually(lambda: process.poll() is not None or (run / "targets.json").is_file(), 240.0)
            assert process.poll() is None, (folder / "log").read_text()
            with servers.prometheus(run) as address:
                records = run / "metrics.jsonl"
                servers.eventually(lambda: process.poll() is not None or servers.lines(records) >= STEPS, 240.0)
                assert process.poll() is None, (folder / "log").read_text()
                servers.eventually(lambda: servers.query(address, f"treeadv_policy_version >= {STEPS}"))
                servers.eventually(
                    lambda: servers.query(address, f"count_over_time(treeadv_policy_version[5m]) >= {SCRAPES}")
                )
                yield run, address
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=120)


def test_every_target_answers_with_its_run_and_role(watched: tuple[Path, str]) -> None:
    run, address = watched
    targets = json.loads((run / "targets.json").read_text())
    up = servers.query(address, "up == 1")
    assert len(up) == len(targets)
    assert {t["metric"]["run"] for t in up} == {"watched"}
    assert {t["metric"]["role"] for t in up} == {"driver", "queue", "generator", "reward", "learner"}


def test_every_metric_of_the_table_is_scraped(watched: tuple[Path, str]) -> None:
    names = set(servers.get(f"{watched[1]}/api/v1/label/__name__/values")["data"])
    expected = {
        m.name + ("_bucket" if m.kind == "histogram" else "") for m in TABLE if m.name not in OF_OPTIONS
    } - OF_FAULTS
    assert expected <= names


def test_counters_of_a_healthy_run_are_above_zero(watched: tuple[Path, str]) -> None:
    moving = [
        m.name + ("_count" if m.kind == "histogram" else "")
        for m in TABLE
        if m.kind != "gauge" and m.name not in QUIET | OF_OPTIONS
    ]
    assert [name for name in moving if not servers.query(watched[1], f"{name} > 0")] == []
    # the number of forests beyond the staleness bound depends on timing
    chance = {"treeadv_queue_dropped_total", "treeadv_idle_updates_total", "treeadv_clipped_gradients_total"}
    assert [name for name in QUIET - chance if servers.query(watched[1], f"{name} > 0")] == []


def test_driver_exports_the_planned_steps(watched: tuple[Path, str]) -> None:
    """The last version is the number of planned steps minus the number of steps whose updates were all skipped."""
    (planned,) = servers.query(watched[1], "treeadv_run_steps - treeadv_policy_version + on (run) treeadv_steps_total")
    assert float(planned["value"][1]) == recipe(Path(), Path())["run"]["steps"]


@pytest.mark.parametrize("board", dashboards.BOARDS, ids=lambda b: b.name)
def test_every_panel_returns_numbers(watched: tuple[Path, str], board: dashboards.Board) -> None:
    silent = []
    for panel in board.panels:
        for q in panel.queries:
            series = servers.query(watched[1], concrete(q.expr))
            if any(name in q.expr for name in OF_FAULTS | OF_OPTIONS):
                continue  # the query is sent too, because the server must accept it
            if not series or all(isnan(float(s["value"][1])) for s in series):
                silent.append((panel.title, q.expr))
    assert silent == []


def test_events_of_a_healthy_run_are_its_checkpoints(watched: tuple[Path, str]) -> None:
    window = {e.name: concrete(e.expr).replace("[1m]", "[10m]") for e in events.EVENTS}
    assert {name for name, expression in window.items() if servers.query(watched[1], expression)} == {"Checkpoints"}


def test_every_recording_rule_has_a_value_and_no_alert_fires(watched: tuple[Path, str]) -> None:
    missing = [r["record"] for r in rules("record") if not servers.query(watched[1], r["record"])]
    assert missing == []
    firing = {
        a["metric"]["alertname"] for a in servers.query(watched[1], 'ALERTS{alertstate="firing", severity="critical"}')
    }
    assert firing <= {"TreeadvDiskFilling"}  # this alert depends on the free disk space of the machine
