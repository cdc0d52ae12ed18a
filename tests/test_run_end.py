"""Tests that Prometheus sees the end of a run that ends on purpose. Otherwise it looks like the death of the driver."""

from __future__ import annotations

import asyncio
import signal
import time
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from actors.driver.recorder import Recorder
from tests.deploy import servers
from tests.deploy.test_monitoring import rules
from tests.injection import Run
from tests.report.runs import record
from tests.running import LIMIT, finish
from treeadv.report.progress import Progress
from treeadv.scrapers import LONGEST, Scrapers
from treeadv.storage.run_folder import RunFolder


def test_reader_is_expected_within_twice_its_interval() -> None:
    scrapers = Scrapers()
    for at in (0.0, 15.0, 30.0):
        scrapers.read("prometheus", at)
    assert scrapers.expected_until(31.0) == 60.0
    scrapers.read("prometheus", 45.0)
    assert scrapers.expected_until(31.0) == 31.0


@pytest.mark.parametrize("reads", [(), (30.0,), (0.0, LONGEST + 1.0)], ids=["never", "once", "rarely"])
def test_reader_without_a_rhythm_is_not_expected(reads: tuple[float, ...]) -> None:
    scrapers = Scrapers()
    for at in reads:
        scrapers.read("curl", at)
    assert scrapers.expected_until(100.0) == 100.0


def test_every_reader_is_waited_for() -> None:
    """Two replicas of Prometheus read the same target."""
    scrapers = Scrapers()
    for at in (0.0, 15.0):
        scrapers.read("a", at)
        scrapers.read("b", at + 7.0)
    scrapers.read("a", 30.0)
    assert scrapers.expected_until(29.0) == 52.0


def values(address: str) -> dict[tuple[str, str], float]:
    """Return the values of an exporter by name and role."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=20) as page:
        families = text_string_to_metric_families(page.read().decode())
    return {(s.name, s.labels.get("role", "")): s.value for f in families for s in f.samples}


def test_ended_run_has_no_steps_left_and_plans_no_actors(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.record(record(1) | {"version": 7})
    recorder = Recorder(folder, Progress(40, Console(quiet=True)))
    exporter = recorder._exporter
    address = exporter.serve("127.0.0.1", 0)
    exporter.set("treeadv_run_steps", 40)
    exporter.set("treeadv_actors_target", 3, role="generator")

    async def end() -> None:
        for ago in (60.0, 30.0):
            exporter.scrapers.read("127.0.0.1", time.monotonic() - ago)
        ending = asyncio.create_task(recorder.end())
        await asyncio.sleep(0.2)
        assert not ending.done()  # the next read is due
        read = await asyncio.to_thread(values, address)
        assert (read["treeadv_run_steps", ""], read["treeadv_policy_version", ""]) == (7, 7)
        assert read["treeadv_actors_target", "generator"] == read["treeadv_actors", "generator"] == 0
        await asyncio.wait_for(ending, 20)

    asyncio.run(end())
    exporter.close()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(bool(servers.missing()), reason=f"not installed: {servers.missing()}")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_alert_tells_an_end_on_purpose_from_a_kill(number: signal.Signals, tmp_path: Path, tiny_model: Path) -> None:
    """After SIGTERM another driver has to resume the run. The test asks for the value of the alert, which waits for two
    more minutes."""
    (rule,) = (r for r in rules("alert") if r["alert"] == "TreeadvDriverDown")
    run = Run(tmp_path, tiny_model)
    with servers.prometheus(run.run) as address:
        servers.eventually(lambda: servers.query(address, "count_over_time(treeadv_run_steps[1m]) > 3"))
        run.process.send_signal(number)
        if number == signal.SIGINT:
            finish(run.process)
        else:
            run.process.wait(LIMIT)
        servers.eventually(lambda: not servers.query(address, "treeadv_policy_version"))
        assert bool(servers.query(address, rule["expr"])) is (number == signal.SIGTERM)
