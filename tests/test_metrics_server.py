"""Tests that /healthz and /metrics answer for any behaviour of other connections."""

from __future__ import annotations

import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from treeadv import metrics
from treeadv.metrics import Exporter

ROLES = ("driver", "generator", "reward", "queue", "learner")


@pytest.fixture
def exporter() -> Iterator[Exporter]:
    made = Exporter("queue")
    yield made
    made.close()


def connect(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=20)


def answer(address: str, path: str) -> tuple[int, str]:
    with urllib.request.urlopen(f"http://{address}{path}", timeout=20) as reply:
        return reply.status, reply.read().decode()


@pytest.mark.parametrize("role", ROLES)
def test_idle_connections_keep_no_one_from_an_answer(role: metrics.Role) -> None:
    exporter = Exporter(role)
    address = exporter.serve("127.0.0.1", 0)
    with ExitStack() as stack:
        stack.callback(exporter.close)
        for sent in (b"", b"GET /metr", b"GET /metrics HTTP/1.1\r\nHost: x\r\n"):
            stack.enter_context(connect(address)).sendall(sent)
        assert answer(address, "/healthz") == (200, "ok\n")
        status, text = answer(address, "/metrics")
        assert status == 200 and all(m.name.removesuffix("_total") in text for m in metrics.of_role(role))


def test_idle_connection_is_closed_after_its_time(exporter: Exporter, monkeypatch, capfd) -> None:
    monkeypatch.setattr(metrics._SilentHandler, "timeout", 0.2)
    address = exporter.serve("127.0.0.1", 0)
    with connect(address) as idle:
        assert idle.recv(1) == b""
    assert "Traceback" not in capfd.readouterr().err


def test_client_that_drips_is_closed_after_its_time(exporter: Exporter, monkeypatch) -> None:
    monkeypatch.setattr(metrics, "CONNECTION_SECONDS", 0.5)
    address = exporter.serve("127.0.0.1", 0)
    with connect(address) as slow, pytest.raises(OSError):
        for _ in range(100):
            slow.sendall(b"G")
            time.sleep(0.1)


def test_connections_beyond_the_bound_are_closed(exporter: Exporter, monkeypatch) -> None:
    monkeypatch.setattr(metrics, "CONNECTIONS", 3)
    address = exporter.serve("127.0.0.1", 0)
    before = threading.active_count()
    with ExitStack() as stack:
        many = [stack.enter_context(connect(address)) for _ in range(20)]
        assert many[-1].recv(1) == b""
        assert threading.active_count() <= before + 2 * 3
        for one in many:
            one.close()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:  # the connections become free again
        try:
            assert answer(address, "/healthz") == (200, "ok\n")
            return
        except OSError:
            time.sleep(0.05)
    pytest.fail("no place became free")


def test_refresh_runs_in_one_thread_at_a_time() -> None:
    inside: list[int] = []
    most = [0]

    def refresh() -> None:
        inside.append(1)
        most[0] = max(most[0], len(inside))
        time.sleep(0.05)
        inside.pop()

    exporter = Exporter("driver", refresh=refresh)
    address = exporter.serve("127.0.0.1", 0)
    scrapes = [threading.Thread(target=answer, args=(address, "/metrics")) for _ in range(4)]
    for scrape in scrapes:
        scrape.start()
    for scrape in scrapes:
        scrape.join()
    exporter.close()
    assert most == [1]
