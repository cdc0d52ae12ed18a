"""Tests alerts on the series of a real run that Prometheus recorded. First a generator of the run is stopped, then the
driver."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy import servers
from tests.deploy.test_monitoring import RULES
from tests.injection import Run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(servers.missing()), reason=f"not installed: {servers.missing()}"),
    pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed"),
]
HUNG_SECONDS = 40  # promtool reads one second of the recording as one minute


def recorded(address: str, start: float, end: float) -> list[dict[str, Any]]:
    """Return all series of the run as input of promtool, with one value per second. A series that ends becomes
    stale."""
    ask = {"query": '{__name__=~"treeadv_.*"}', "start": str(start), "end": str(end), "step": "1"}
    series = []
    for found in servers.get(f"{address}/api/v1/query_range", **ask)["data"]["result"]:
        values = {round(at - start): value for at, value in found["values"]}
        words = [values.get(n) or ("stale" if n - 1 in values else "_") for n in range(int(end - start))]
        labels = {name: value for name, value in found["metric"].items() if name != "__name__"}
        text = ", ".join(f"{name}={json.dumps(value)}" for name, value in labels.items())
        series.append({"series": f"{found['metric']['__name__']}{{{text}}}", "values": " ".join(words)})
    return series


def firing(series: list[dict[str, Any]], minute: int, alert: str, folder: Path) -> bool:
    """Return whether promtool says that an alert fires at a minute of the recorded series."""
    test = {"interval": "1m", "input_series": series, "alert_rule_test": [
        {"alertname": alert, "eval_time": f"{minute}m", "exp_alerts": []}
    ]}  # fmt: skip
    file = folder / f"{alert}-{minute}.yml"
    file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [test]}))
    out = subprocess.run(["promtool", "test", "rules", file], capture_output=True, text=True, timeout=120)
    said = out.stdout + out.stderr
    assert out.returncode == 0 or f'alertname="{alert}"' in said, said
    return out.returncode != 0


@pytest.mark.timeout(900)
def test_alerts_fire_on_a_really_stopped_generator_and_driver(tmp_path: Path, tiny_model: Path) -> None:
    run = Run(tmp_path, tiny_model, run__heartbeat_timeout=3600.0)  # the driver must not kill the generator
    with servers.prometheus(run.run) as address:
        servers.eventually(lambda: servers.query(address, "count_over_time(treeadv_generator_lag_versions[1m]) > 15"))
        start = time.time() - 15
        stopped = run.hosts("Generator")[0]
        stopped.suspend()
        stopped_at = time.time() - start
        servers.eventually(lambda: servers.query(address, "treeadv_generator_lag_versions > 1"), 120)
        time.sleep(HUNG_SECONDS)
        hung_until = time.time() - start
        stopped.resume()
        servers.eventually(lambda: servers.query(address, "treeadv_generator_lag_versions <= 1"), 120)
        driver_stopped = time.time() - start
        run.process.send_signal(signal.SIGSTOP)
        time.sleep(20)
        driver_until = time.time() - start
        run.process.send_signal(signal.SIGCONT)
        series = recorded(address, start, time.time())
    at = {"before": int(stopped_at), "hung": int(hung_until) - 1, "driver": int(driver_until) - 1}
    fires = {(alert, when): firing(series, minute, alert, tmp_path)
             for alert in ("TreeadvGeneratorsBehind", "TreeadvDriverDown") for when, minute in at.items()}  # fmt: skip
    assert driver_stopped > hung_until
    assert fires == {
        ("TreeadvGeneratorsBehind", "before"): False,
        ("TreeadvGeneratorsBehind", "hung"): True,
        ("TreeadvGeneratorsBehind", "driver"): False,
        ("TreeadvDriverDown", "before"): False,
        ("TreeadvDriverDown", "hung"): False,
        ("TreeadvDriverDown", "driver"): True,
    }
    run.recover("Generator")
    run.end()
