"""A proxy in front of a real SGLang server. It can change, fail or withhold the server's answers to /generate and to
some other calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import aiohttp
from aiohttp import web

Spoil = Callable[[dict[str, Any]], Any]


class FaultyProxy:
    def __init__(self, target: str) -> None:
        self._target = target
        self.url = ""
        self.reset()

    def reset(self) -> None:
        """Pass every request through and reset the counts."""
        self._spoil: Spoil | None = None
        self._first, self._every = 0, 1
        self._fail_times = self._status = self._hang_times = self._break_times = 0
        self.replies = self.spoilt = self.failed = 0
        self.rids: list[str] = []
        self.flush_refusals = 0  # number of the next calls of /flush_cache that are refused
        self.server_info: dict[str, Any] = {}  # fields that replace those of the answer to /server_info
        self.dead = False  # whether every connection is closed without an answer

    def change_after(self, replies: int, spoil: Spoil) -> None:
        """Change every reply after the next `replies`."""
        self.replies, self._spoil, self._first, self._every = 0, spoil, replies, 1

    def change_every(self, replies: int, spoil: Spoil) -> None:
        """Change every `replies`-th reply."""
        self.replies, self._spoil, self._first, self._every = 0, spoil, 0, replies

    def fail(self, times: int, status: int) -> None:
        """Answer the next `times` requests with `status` without passing them on."""
        self._fail_times, self._status = times, status

    def break_off(self, times: int) -> None:
        """Close the connection of the next `times` requests without an answer, as a server does after an idle
        timeout."""
        self._break_times = times

    def hang(self, times: int) -> None:
        """Leave the next `times` requests without an answer."""
        self._hang_times = times

    async def start(self) -> None:
        self._session = aiohttp.ClientSession(self._target)
        app = web.Application(client_max_size=2**30)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def close(self) -> None:
        await self._runner.cleanup()
        await self._session.close()

    async def _answer(self, request: web.Request) -> web.Response:
        if self.dead:
            assert request.transport is not None
            request.transport.abort()
        body = await request.read()
        if request.path == "/flush_cache" and self.flush_refusals > 0:
            self.flush_refusals -= 1
            return web.Response(status=400, text="Flush cache failed.")
        drawing = request.path == "/generate" and request.method == "POST"
        if drawing:
            self.rids.append((await request.json())["rid"])
            if self._break_times > 0:
                self._break_times -= 1
                assert request.transport is not None
                request.transport.close()
            if self._hang_times > 0:
                self._hang_times -= 1
                await asyncio.sleep(30)
            if self._fail_times > 0:
                self._fail_times -= 1
                self.failed += 1
                return web.json_response({"error": {"message": "injected"}}, status=self._status)
        headers = {"Content-Type": request.headers.get("Content-Type", "application/json")}
        async with self._session.request(request.method, request.path_qs, data=body, headers=headers) as reply:
            if request.path == "/server_info":
                return web.json_response(await reply.json() | self.server_info)
            if not (drawing and reply.status == 200 and self._is_spoilt()):
                return web.Response(body=await reply.read(), status=reply.status, content_type=reply.content_type)
            assert self._spoil is not None
            return web.json_response(self._spoil(await reply.json()))

    def _is_spoilt(self) -> bool:
        self.replies += 1
        if self._spoil is None or self.replies <= self._first or self.replies % self._every:
            return False
        self.spoilt += 1
        return True
