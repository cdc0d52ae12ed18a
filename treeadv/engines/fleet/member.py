"""The interface of one inference server to the fleet. An engine with servers subclasses `Member`."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic, TypeVar

Payload = TypeVar("Payload")  # the weights in the form that a server loads


class ServerGone(Exception):
    """The error of a server that cannot be reached, hangs, or fails repeatedly. The message is the reason."""


class Refused(Exception):
    """The error of a server that refused a call or sent a reply that training cannot use. The message is the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """One weight update of one server: the version, the bytes sent, and the seconds from the pause to the
    continuation.
    """

    version: int
    bytes: int
    seconds: float


class Member(ABC, Generic[Payload]):
    """A server and its state in the fleet. An empty `url` means a server that this process starts."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.version = 0  # policy version of the server's weights
        self.ready = asyncio.Event()  # set while the server accepts requests
        self.lost = asyncio.Event()  # set while the server must be restarted
        self.reason = ""  # the reason of the last loss
        self.listed = True  # whether discovery lists the server

    @abstractmethod
    async def bring_up(self) -> None:
        """Start or reach the server and check that it serves the run's model as version 0. The server may run already.

        Raises `BadInput`, `ServerGone` or `Refused`.
        """

    @abstractmethod
    async def load(self, version: int, payload: Payload) -> Loaded:
        """Load a policy version. After an error the server must not serve. Raises `ServerGone` or `Refused`."""

    @abstractmethod
    async def ended(self) -> str:
        """Wait for the end of a server that this process started, and return the reason.

        Never returns for a server that another process started.
        """

    @abstractmethod
    async def shut(self) -> None:
        """Close the connections, and end the server if this process started it."""
