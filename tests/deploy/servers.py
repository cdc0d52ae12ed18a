"""Starts Prometheus and Alertmanager on free ports for the duration of a test."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from monitoring import local
from tests.deploy.manifests import ROOT


def missing() -> str:
    """Return the names of the programs that are not installed, as a reason to skip a test."""
    return ", ".join(p for p in ("prometheus", "prometheus-alertmanager") if shutil.which(p) is None)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("", 0))
        return s.getsockname()[1]


def get(url: str, **parameters: str) -> Any:
    with urllib.request.urlopen(f"{url}?{urllib.parse.urlencode(parameters)}", timeout=10) as reply:
        return json.load(reply)


def query(address: str, expression: str) -> list[dict[str, Any]]:
    """Return an instant vector: [{"metric": labels, "value": [time, text]}]."""
    return get(f"{address}/api/v1/query", query=expression)["data"]["result"]


def eventually(poll: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Call `poll` until its answer is truthy, and return the answer. Raises AssertionError after `seconds`."""
    end = time.monotonic() + seconds
    while not (answer := poll()):
        assert time.monotonic() < end, f"{poll} returned {answer!r} for {seconds} s"
        time.sleep(0.5)
    return answer


def lines(path: Path) -> int:
    """Return the number of lines of a file; 0 if the file does not exist."""
    return len(path.read_text().splitlines()) if path.is_file() else 0


@contextmanager
def running(line: list[str], ready: str, log: Path) -> Iterator[None]:
    """Run a program until the block ends. The block starts when the URL `ready` answers."""
    with log.open("w") as out:
        process = subprocess.Popen(line, stdout=out, stderr=subprocess.STDOUT)
        try:
            eventually(lambda: process.poll() is not None or _answers(ready))
            assert process.poll() is None, log.read_text()
            yield
        finally:
            process.terminate()
            process.wait(timeout=20)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            return reply.status == 200
    except OSError:
        return False


@contextmanager
def prometheus(run: Path, alertmanager: str = "") -> Iterator[str]:
    """Start the Prometheus of `make monitoring` on `run`, scrape every second, and yield its address."""
    port = free_port()
    line = local.command([run], port)
    file = run / "prometheus" / "prometheus.yml"
    config = yaml.safe_load(file.read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    if alertmanager:
        config["alerting"] = {"alertmanagers": [{"static_configs": [{"targets": [alertmanager]}]}]}
    file.write_text(yaml.safe_dump(config))
    address = f"http://127.0.0.1:{port}"
    with running(line, f"{address}/-/ready", run / "prometheus.log"):
        yield address


@contextmanager
def alertmanager(folder: Path) -> Iterator[str]:
    """Start Debian's Alertmanager with the committed configuration and yield host:port."""
    port = free_port()
    line = [
        "prometheus-alertmanager",
        f"--config.file={ROOT / 'monitoring' / 'alertmanager.yml'}",
        f"--storage.path={folder / 'alerts'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--cluster.listen-address=",
    ]
    with running(line, f"http://127.0.0.1:{port}/-/ready", folder / "alertmanager.log"):
        yield f"127.0.0.1:{port}"
