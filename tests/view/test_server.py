"""Tests that the server answers its paths on the address of this machine, and refuses every other request."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from urllib.parse import quote

import pytest

from actors.cli import main
from treeadv.errors import BadInput
from treeadv.view.catalogue import Catalogue
from treeadv.view.pages import STATIC
from treeadv.view.server import Server


def get(server: Server, path: str, method: str = "GET", **headers: str) -> tuple[int, str, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
    connection.request(method, path, headers=headers)
    reply = connection.getresponse()
    body = reply.read().decode()
    connection.close()
    return reply.status, body, reply.headers


def test_page_loads_only_files_of_the_server(server: Server) -> None:
    status, body, headers = get(server, "/")
    assert status == 200 and "import 'view/main.js'" in body
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    for name in STATIC:
        status, text, headers = get(server, f"/static/{name}")
        assert status == 200 and headers["X-Content-Type-Options"] == "nosniff"
        assert "://" not in text.replace("http://www.w3.org/", "") or name.startswith("vendor/")


def test_api_gives_the_run_its_rows_and_a_forest(server: Server, catalogue: Catalogue) -> None:
    run = json.loads(get(server, "/api/run")[1])
    assert (run["rows"], run["read"], run["state"], run["text"]) == (6, 6, "finished", True)
    page = json.loads(get(server, "/api/forests?since=0&limit=2")[1])
    assert len(page["rows"]) == 2 and page["last"] == run["serial"]
    key = page["rows"][0]["key"]
    forest = json.loads(get(server, f"/api/forest?key={quote(key)}")[1])
    assert forest["forest_id"] == key and len(forest["text"]) == len(forest["parent"])
    found = json.loads(get(server, "/api/search?text=%3Cb%3EOWL")[1])
    assert len(found["found"]) == 1 and found["next"] is None


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("/api/forest?key=none", 400, "none: no such forest"),
        ("/api/forests?since=-1", 400, "since=-1: a number from 0 is needed"),
        ("/api/forests?limit=1e9", 400, "limit=1e9"),
        ("/api/forests?since=" + "9" * 40, 400, "since=9"),
        ("/api/forest", 400, "no such forest"),
        ("/api/run?" + "a=1&" * 20, 400, "not an address of this server"),
        ("/api", 404, "no such page"),
        ("/static/../pages.py", 404, "no such page"),
        ("/static/%2e%2e/pages.py", 404, "no such page"),
        ("/static//etc/passwd", 404, "no such page"),
        ("/static/vendor", 404, "no such page"),
        ("/../../etc/passwd", 404, "no such page"),
    ],
)
def test_wrong_request_gets_one_line(server: Server, path: str, status: int, message: str) -> None:
    found, body, _ = get(server, path)
    assert found == status and message in json.loads(body)["error"]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_server_only_reads(server: Server, method: str) -> None:
    assert get(server, "/api/run", method)[0] == 501


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "10.0.0.1", "", "[::1]:80", "localhost.evil.example"]
)
def test_request_for_another_host_is_refused(server: Server, host: str) -> None:
    assert get(server, "/api/run", Host=host)[0] == 403


def test_connection_that_sends_nothing_blocks_no_other(server: Server) -> None:
    with socket.create_connection(server.server_address[:2]):
        assert get(server, "/api/run")[0] == 200


def test_taken_port_is_named(server: Server, catalogue: Catalogue) -> None:
    port = server.server_address[1]
    with pytest.raises(BadInput, match=f"--port {port}: cannot listen"):
        Server(catalogue, port)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none"], "none: no such file or run folder"),
        (["RUN", "--preset", "grpo"], "is a run, whose own preset is shown"),
        (["RUN", "--steps", "1-2"], "--steps goes with --bundle"),
        (["RUN", "--steps", "one"], "'one' is no range of steps"),
        (["RUN", "--port", "99999"], "'99999' is not a port"),
        (["RUN", "--model", "none"], "none/tokenizer.json: no such tokenizer"),
    ],
)
def test_wrong_command_gets_one_line(
    run: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    try:
        code = main(["view", *(str(run) if a == "RUN" else a for a in arguments)])
    except SystemExit as e:
        code = e.code
    error = capsys.readouterr().err
    assert code == 2 and message in error and error.count("\n") == 1
