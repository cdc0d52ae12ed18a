"""Finds the single servers behind an address. Weights must reach every server, so this module resolves routers and
Kubernetes Services.
"""

from __future__ import annotations

import asyncio
import socket
from urllib.parse import urlsplit

import aiohttp

from treeadv.errors import BadInput

PATIENCE = aiohttp.ClientTimeout(total=10)


async def resolve(key: str, url: str) -> list[str]:
    """Return the base addresses of the single servers behind `url`, sorted. Errors name the configuration key `key`.

    Each comma-separated part is a server, a router that lists its servers at `/workers` (as sglang-router does), or a
    DNS name with several addresses (a headless Kubernetes Service). The list is empty while a router has no server.
    Raises `BadInput`.
    """
    found: set[str] = set()
    for address in filter(None, (p.strip().rstrip("/") for p in url.split(","))):
        if urlsplit(address).scheme not in ("http", "https") or not urlsplit(address).hostname:
            raise BadInput(f"{key}={url}: {address} is not an http address; write http://HOST:PORT")
        workers = await _workers(key, address)
        found.update(await _addresses(key, address) if workers is None else workers)
    return sorted(found)


async def _workers(key: str, url: str) -> list[str] | None:
    """Return the servers of a router, or None if `url` is not a router."""
    try:
        async with aiohttp.ClientSession(timeout=PATIENCE) as session, session.get(f"{url}/workers") as reply:
            if reply.status != 200:
                return None
            listed = await reply.json()
    except aiohttp.ContentTypeError:
        return None
    except (aiohttp.ClientError, OSError, TimeoutError) as e:
        raise BadInput(
            f"{key}: {url} does not answer ({type(e).__name__}: {e}); start the server or correct the address"
        ) from e
    return [worker["url"].rstrip("/") for worker in listed["workers"]]


async def _addresses(key: str, url: str) -> list[str]:
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        answers = await asyncio.get_running_loop().getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    except OSError as e:
        raise BadInput(f"{key}: the host of {url} has no address ({e}); correct the name of the host") from e
    hosts = {str(address[0]) for *_, address in answers}
    if len(hosts) == 1:
        return [url]
    return [f"{parts.scheme}://[{h}]:{port}" if ":" in h else f"{parts.scheme}://{h}:{port}" for h in hosts]


def own_address(url: str) -> str:
    """Return the address of this machine on the route to the server at `url`."""
    parts = urlsplit(url)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:  # connecting sends no packet: it only chooses the route
        s.connect((parts.hostname, parts.port or 80))
        return s.getsockname()[0]
