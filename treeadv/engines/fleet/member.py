"""The interface of one inference server to the fleet. An engine with servers subclasses `Member`."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic, TypeVar

Payload = TypeVar("Payload")  # the weights in the form that a server loads


class ServerGone(Exception):
    """The server cannot be reached, hangs, or fails repeatedly. The message is the reason."""


class Refused(Exception):
    """The server refused a call, or its reply cannot be used for training. The message is the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """One weight update of one server: its version, the bytes sent, and the seconds from pause to continue."""

    version: int
    bytes: int
    seconds: float


class Member(ABC, Generic[Payload]):
    """A server and its state in the fleet. An empty `url` stands for a server that this process starts."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.version = 0  # policy version of the server's weights
        self.ready = asyncio.Event()  # set while the server accepts requests
        self.lost = asyncio.Event()  # set while the server must be restarted
        self.reason = ""  # the reason of the last loss
        self.listed = True  # whether discovery lists the server

    @abstractmethod
    async def bring_up(self) -> None:
        """Start or reach the server and check that it serves the run's model as version 0. The server may be running.

        Raises `BadInput`, `ServerGone` or `Refused`.
        """

    @abstractmethod
    async def load(self, version: int, payload: Payload) -> Loaded:
        """Load a policy version. After an error the server must not serve. Raises `ServerGone` or `Refused`."""

    @abstractmethod
    async def ended(self) -> str:
        """Wait for the end of a server that this process started, and return the reason.

        Never returns for another server.
        """

    @abstractmethod
    async def shut(self) -> None:
        """Close the connections, and end the server if this process started it."""
