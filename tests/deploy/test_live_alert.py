"""Tests that an alert reaches Alertmanager from an exporter, through Prometheus with the committed rules."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.deploy import servers
from treeadv.metrics import Exporter

installed = pytest.mark.skipif(bool(servers.missing()), reason=f"not installed: {servers.missing()}")
pytestmark = [pytest.mark.slow, installed]


def test_law_violation_reaches_alertmanager_and_resolves(tmp_path: Path) -> None:
    queue, driver = Exporter("queue"), Exporter("driver")
    addresses = {role: e.serve("127.0.0.1", 0) for role, e in (("queue", queue), ("driver", driver))}
    targets = [
        {"targets": [address], "labels": {"run": "r1", "role": role, "instance": role}}
        for role, address in addresses.items()
    ]
    (tmp_path / "targets.json").write_text(json.dumps(targets))
    queue.set("treeadv_queue_law_error", 0, unit="forests")
    queue.set("treeadv_queue_disk_free_bytes", float("inf"))
    driver.set("treeadv_actors", 3, role="generator")
    with servers.alertmanager(tmp_path) as alerts, servers.prometheus(tmp_path, alerts) as address:
        (actors,) = servers.eventually(lambda: servers.query(address, "treeadv_actors"))
        assert actors["metric"]["role"] == "generator"  # the label of the metric replaces the label of the target
        assert servers.query(address, "ALERTS") == []

        queue.set("treeadv_queue_law_error", 2, unit="forests")
        (alert,) = servers.eventually(lambda: servers.get(f"http://{alerts}/api/v2/alerts"))
        labels = {"alertname": "TreeadvLawViolated", "run": "r1", "unit": "forests", "severity": "critical"}
        assert alert["labels"].items() >= labels.items()
        assert alert["annotations"]["summary"] == "r1: 2 forests lost or counted twice by the queue"

        queue.set("treeadv_queue_law_error", 0, unit="forests")
        servers.eventually(lambda: not servers.get(f"http://{alerts}/api/v2/alerts"))
    queue.close()
    driver.close()
