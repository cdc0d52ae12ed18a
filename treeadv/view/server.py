"""The server of `treeadv view`.

It serves the page, its files, and JSON about the forests. It listens only on 127.0.0.1.

GET /api/run                          facts of the head, and how much has been read
GET /api/forests?since=N&limit=M      rows changed after change N
GET /api/forest?key=KEY               one forest (`treeadv.view.encoding`)
GET /api/search?text=TEXT&after=N     keys of forests with this text, from forest number N on
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from treeadv.errors import BadInput, one_line
from treeadv.jsonl import JsonMapping, JsonObject
from treeadv.view.catalogue import Catalogue
from treeadv.view.encoding import encode_row
from treeadv.view.pages import STATIC, TYPES, served_page, static
from treeadv.visible import visible

ROWS = 2000  # largest number of rows of one answer
MAX_TEXT = 1000  # longest searched text, in characters
_TIMEOUT = 30.0  # seconds that a connection may be idle
_HOSTS = ("127.0.0.1", "localhost")

Query = Mapping[str, str]


class Api:
    """The functions that answer the paths below /api with JSON-able values."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.paths: Mapping[str, Callable[[Query], JsonObject]] = {
            "/api/run": lambda _: catalogue.about(),
            "/api/forests": lambda q: catalogue.changes(_count(q, "since", 0), _count(q, "limit", ROWS, ROWS)),
            "/api/forest": lambda q: encode_row(catalogue.source, catalogue.row(q.get("key", "")).key),
            "/api/search": lambda q: catalogue.search(q.get("text", "")[:MAX_TEXT], _count(q, "after", 0)),
        }


def _count(query: Query, name: str, default: int, limit: int = 2**53) -> int:
    """Return the number `name` of the query. Raises `BadInput` unless it is an integer from 0 to `limit`."""
    text = query.get(name, str(default))
    if not (text.isascii() and text.isdecimal()) or len(text) > 16:
        raise BadInput(f"{name}={text:.40}: a number from 0 is needed")
    return min(int(text), limit)


class Handler(BaseHTTPRequestHandler):
    """The handler of one connection.

    It refuses a request for another host name, because another site may have sent it.
    """

    server: Server
    server_version, sys_version = "treeadv", ""
    protocol_version = "HTTP/1.1"
    timeout = _TIMEOUT

    def do_GET(self) -> None:
        host = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
        if host not in _HOSTS:
            self._json(HTTPStatus.FORBIDDEN, {"error": f"this server answers {' and '.join(_HOSTS)} only"})
            return
        try:
            address = urlsplit(self.path)
            fields = parse_qs(address.query, max_num_fields=16)
        except ValueError as e:
            self._json(HTTPStatus.BAD_REQUEST, {"error": visible(f"not an address of this server: {one_line(e)}")})
            return
        path = address.path
        if path == "/":
            page, policy = self.server.page
            self._send(HTTPStatus.OK, "text/html; charset=utf-8", page.encode(), {"Content-Security-Policy": policy})
        elif path.startswith("/static/") and (name := path.removeprefix("/static/")) in STATIC:
            kind = TYPES[name[name.rindex(".") :]]
            self._send(HTTPStatus.OK, f"{kind}; charset=utf-8", static(name))
        elif answer := self.server.api.paths.get(path):
            query = {name: values[-1] for name, values in fields.items()}
            try:
                self._json(HTTPStatus.OK, answer(query))
            except BadInput as e:
                self._json(HTTPStatus.BAD_REQUEST, {"error": visible(str(e))})
        else:
            self._json(HTTPStatus.NOT_FOUND, {"error": "no such page"})

    def _json(self, status: HTTPStatus, value: JsonMapping) -> None:
        body = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        self._send(status, "application/json; charset=utf-8", body.encode())

    def _send(self, status: HTTPStatus, kind: str, body: bytes, more: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        headers = {"Content-Type": kind, "Content-Length": str(len(body)), "Cache-Control": "no-store"}
        for name, value in {**headers, "X-Content-Type-Options": "nosniff", **(more or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Write nothing, because the terminal shows only the address."""


class Server(ThreadingHTTPServer):
    """The server of a catalogue on a port of this machine. Port 0 chooses a free port."""

    daemon_threads = True

    def __init__(self, catalogue: Catalogue, port: int = 0) -> None:
        """Listen on the port. Raises `BadInput` if the port is taken."""
        try:
            super().__init__(("127.0.0.1", port), Handler)
        except OSError as e:
            raise BadInput(
                f"--port {port}: cannot listen on this port ({e.strerror}); choose another, or 0 for any"
            ) from e
        self.api = Api(catalogue)
        self.page = served_page(f"{catalogue.source.about()['name']} · treeadv")

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"

    def handle_error(self, request: socket.socket | tuple[bytes, socket.socket], client_address: object) -> None:
        """Write the traceback of an error. Writes nothing if the browser has closed the connection."""
        import sys

        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)
