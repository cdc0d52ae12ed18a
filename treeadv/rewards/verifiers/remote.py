"""The verifier `http(s)://...`, which calls a service that judges answers over HTTP."""

from __future__ import annotations

import json
import math
import os
import re
import time
import urllib.error
import urllib.request
from dataclasses import replace
from http.client import HTTPException, HTTPMessage
from typing import IO, NoReturn
from urllib.parse import urlsplit

from treeadv.errors import BadInput
from treeadv.jsonl import JsonMapping
from treeadv.rewards.judgement import Grade, Task, crashed, grade_of
from treeadv.rewards.verifiers.base import Verifier, columns_of

AUTHORIZATION = "TREEADV_VERIFIER_AUTHORIZATION"  # the environment variable that holds the header, such as "Bearer ..."
FIRST_PAUSE = 0.1  # seconds before the first retry; each further pause doubles
LONGEST = 600.0  # time limit in seconds for all tries of an answer without another limit
MAX_REPLY = 1 << 20  # bytes
_SECRET = re.compile(r"\$\{(TREEADV_VERIFIER_\w+)\}")


class Remote(Verifier):
    """A verifier that posts `response`, `gold`, `meta`, `problem` and the columns of the data line as JSON to a
    service. `grade_of` describes the reply.

    After a refused or broken connection, or a status 429 or 5xx, the verifier retries the request with growing pauses
    until the time limit of the answer. It follows no redirects. It replaces `${TREEADV_VERIFIER_...}` in the URL by
    that variable of the reward actor's environment. It sends `TREEADV_VERIFIER_AUTHORIZATION` as the header
    Authorization. So the configuration needs no secret."""

    usage = "an http(s) URL"
    largest_reward = math.inf

    def check_option(self, option: str | None) -> None:
        parts = urlsplit(self.name)
        if not parts.hostname:
            raise BadInput(f"verifier {self.name!r}: the URL has no host")
        if "@" in parts.netloc:
            raise BadInput(
                f"verifier {parts.scheme}://...@{parts.hostname}: set {AUTHORIZATION} instead of a password in the URL"
            )

    def meta(self, row: JsonMapping) -> str:
        return json.dumps(dict(row), default=str)

    def perfect_response(self, gold: str) -> None:
        """Return None: only the service defines the form of a response."""

    def load(self) -> None:
        self._url = _SECRET.sub(lambda match: _variable(match[1]), self.name)
        self._headers = {"Content-Type": "application/json"}
        self._secrets = [_variable(name) for name in _SECRET.findall(self.name)]
        if AUTHORIZATION in os.environ:
            self._headers["Authorization"] = _variable(AUTHORIZATION)
            self._secrets += [self._headers["Authorization"], *self._headers["Authorization"].split()[1:]]
        self._opener = urllib.request.build_opener(_NoRedirect)

    def judge(self, task: Task) -> Grade:
        """Return the grade. Details and errors never contain a secret, because they are stored with the forest."""
        body = json.dumps(columns_of(task.meta) | {"response": task.text, "gold": task.gold}).encode()
        try:
            grade = grade_of(json.loads(self._reply(body, time.monotonic() + task.seconds)))
        except Exception as e:
            if (text := self._redacted(str(e))) == str(e):
                raise
            return crashed(f"{type(e).__name__}: {text}")
        return replace(grade, detail=self._redacted(grade.detail))

    def _redacted(self, text: str) -> str:
        for secret in filter(None, self._secrets):
            text = text.replace(secret, "...")
        return text

    def _reply(self, body: bytes, deadline: float) -> bytes:
        """Return the body of the reply. Raises the last error if no time is left for another try."""
        pause = FIRST_PAUSE
        deadline = min(deadline, time.monotonic() + LONGEST)
        while True:
            try:
                with self._opener.open(self._request(body), timeout=max(0.1, deadline - time.monotonic())) as reply:
                    content: bytes = reply.read(MAX_REPLY + 1)
            except (OSError, HTTPException) as fault:
                if not _transient(fault) or time.monotonic() + 2 * pause > deadline:
                    raise
                time.sleep(pause)
                pause *= 2
            else:
                if len(content) > MAX_REPLY:
                    raise ValueError(f"the reply is larger than {MAX_REPLY} bytes")
                return content

    def _request(self, body: bytes) -> urllib.request.Request:
        return urllib.request.Request(self._url, body, self._headers)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A handler that refuses every redirect. A redirect turns a POST into a GET and may send the secret header to
    another host."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> NoReturn:
        where = urlsplit(newurl)
        raise urllib.error.HTTPError(
            req.full_url,
            code,
            f"the service redirects to {where.scheme}://{where.hostname}; name that URL as the verifier",
            headers,
            fp,
        )


def _variable(name: str) -> str:
    """Return the value of an environment variable, without the line break that a file of a secret often ends with."""
    if name not in os.environ:
        raise LookupError(f"the environment variable {name} is not set")
    value = os.environ[name].strip()
    if not value.isascii() or not value.isprintable():
        raise LookupError(f"the environment variable {name} holds a character that no URL and no header may have")
    return value


def _transient(fault: Exception) -> bool:
    if isinstance(fault, urllib.error.HTTPError):
        return fault.code == 429 or fault.code >= 500
    cause = fault.reason if isinstance(fault, urllib.error.URLError) else fault
    return isinstance(cause, ConnectionError | HTTPException)
