"""The HTTP client of one SGLang server. Requests have a time limit and bounded retries. Control calls are checked."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

import aiohttp

from treeadv.engines.fleet.member import Refused, ServerGone
from treeadv.jsonl import JsonObject

RETRIES = 3  # retries of a request after a broken connection or a status 5xx; the waiting time doubles
FIRST_WAIT = 0.1  # seconds
# Seconds for which the client keeps an idle connection. The server closes idle connections after 5 seconds, so the
# client closes them earlier.
KEEP = 2.0


class Client:
    """The HTTP client of one server.

    An open request counts as hung when the server has answered no request at all for `timeout` seconds. While the
    server answers other requests, a request may wait for space in the cache.
    """

    def __init__(self, url: str, timeout: float, control_timeout: float) -> None:
        self.url = url
        self._timeout, self._control_timeout = timeout, control_timeout
        self._clocks: set[asyncio.Timeout] = set()
        self._stopped = False
        self._draws = aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP))
        self._controls = aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(force_close=True))

    async def close(self) -> None:
        await self._draws.close()
        await self._controls.close()

    # ---- drawing -----------------------------------------------------------------------------------------------------
    async def generate(self, payload: JsonObject) -> Any:
        """Return the JSON body of the reply of SGLang's native call /generate.

        A retry is a new request with a new id, and the client reads only the reply that it returns, so no retry
        duplicates a branch. Raises `ServerGone`, or `Refused` for a status 4xx.
        """
        fault = ""
        for attempt in range(RETRIES + 1):
            if self._draws.closed:  # the fleet gave the server up between two tries
                raise ServerGone(f"{self.url} was given up; {fault}")
            try:
                status, text = await self._draw(payload | {"rid": uuid.uuid4().hex})
            except (aiohttp.ClientError, OSError) as e:
                fault = f"{type(e).__name__}: {e}"
            else:
                if status == 200:
                    return _json(text)
                fault = f"HTTP {status}: {' '.join(text.split())[:300]}"
                if status < 500:
                    raise Refused(fault)
            await asyncio.sleep(FIRST_WAIT * 2**attempt)
        raise ServerGone(f"{self.url} failed {RETRIES + 1} times, at last with {fault}")

    async def _draw(self, payload: JsonObject) -> tuple[int, str]:
        try:
            async with asyncio.timeout(None if self._stopped else self._timeout) as clock:
                self._clocks.add(clock)
                try:
                    async with self._draws.post("/generate", json=payload, timeout=aiohttp.ClientTimeout()) as reply:
                        status, text = reply.status, await reply.text()
                finally:
                    self._clocks.discard(clock)
        except TimeoutError as e:
            raise ServerGone(f"{self.url} gave no token for {self._timeout:g} s") from e
        self._rewind(self._timeout)
        return status, text

    def stop_clock(self) -> None:
        """Count no request as hung until `start_clock`, because the server is paused."""
        self._stopped = True
        self._rewind(None)

    def start_clock(self) -> None:
        self._stopped = False
        self._rewind(self._timeout)

    def _rewind(self, seconds: float | None) -> None:
        if self._stopped:
            seconds = None
        when = None if seconds is None else asyncio.get_running_loop().time() + seconds
        for clock in self._clocks:
            clock.reschedule(when)

    # ---- control -----------------------------------------------------------------------------------------------------
    async def get(self, path: str, timeout: float | None = None) -> Any:
        """Return the JSON answer to GET. Raises `ServerGone` or `Refused`."""
        return await self._control("GET", path, None, timeout)

    async def post(self, path: str, body: JsonObject | None = None) -> Any:
        """Return the answer to a control call. Raises `Refused` if its status or `success` flag reports a failure."""
        return await self._control("POST", path, body or {}, None)

    async def offers(self, path: str) -> bool:
        """Return whether the server knows `path`. Only an unknown path gives 404."""
        try:
            async with self._controls.options(path) as reply:
                return reply.status != 404
        except (aiohttp.ClientError, OSError) as e:
            raise ServerGone(f"{self.url}{path}: {type(e).__name__}: {e}") from e

    async def _control(self, method: str, path: str, body: object, timeout: float | None) -> Any:
        limit = aiohttp.ClientTimeout(total=timeout or self._control_timeout)
        try:
            async with self._controls.request(method, path, json=body, timeout=limit) as reply:
                status, text = reply.status, await reply.text()
        except (aiohttp.ClientError, OSError, TimeoutError) as e:
            raise ServerGone(f"{self.url}{path}: {type(e).__name__}: {e}") from e
        try:
            answer = json.loads(text) if text else {}
        except ValueError:
            answer = {"message": text}
        if status != 200 or (isinstance(answer, dict) and answer.get("success") is False):
            raise Refused(f"{self.url}{path} refused with HTTP {status}: {' '.join(text.split())[:300]}")
        return answer


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as e:
        raise Refused(f"the reply is not JSON ({e})") from e
