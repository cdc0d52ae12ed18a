"""A proxy in front of an object store. A test can make it refuse requests."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

DENIED = b"<Error><Code>QuotaExceeded</Code><Message>the bucket is full</Message></Error>"


class RefusingStore:
    """A proxy that passes requests to `target` (http://host:port). A request of one of `methods` for which
    `refuses(path)` is true gets an error that clients do not retry."""

    def __init__(self, target: str) -> None:
        self.refuses: Callable[[str], bool] = lambda path: False
        self.methods = ("PUT", "POST")
        self.refused = 0
        store, netloc = self, urlsplit(target).netloc

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.body()
                if self.command in store.methods and store.refuses(urlsplit(self.path).path):
                    store.refused += 1
                    return self.reply(400, {"Content-Type": "application/xml"}, DENIED)
                upstream = http.client.HTTPConnection(netloc, timeout=30)
                headers = {k: v for k, v in self.headers.items() if k.lower() not in ("transfer-encoding", "expect")}
                upstream.request(self.command, self.path, body, headers)
                answer = upstream.getresponse()
                self.reply(answer.status, dict(answer.getheaders()), answer.read())
                upstream.close()

            def body(self) -> bytes:
                if self.headers.get("Transfer-Encoding") != "chunked":
                    return self.rfile.read(int(self.headers.get("Content-Length") or 0))
                parts = []
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                while self.rfile.readline().strip():  # skip the trailers
                    pass
                return b"".join(parts)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer

            def reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
                kept = {k: v for k, v in headers.items() if k.lower() not in ("transfer-encoding", "connection")}
                if self.command != "HEAD":
                    kept = {k: v for k, v in kept.items() if k.lower() != "content-length"}
                    kept["Content-Length"] = str(len(body))
                self.send_response(status)
                for name, value in kept.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.netloc = f"127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
