"""One inference server as the fleet sees it. An engine on servers subclasses `Member`."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic, TypeVar

Payload = TypeVar("Payload")  # the weights in the form that a server takes


class ServerGone(Exception):
    """The server cannot be reached, hangs, or fails repeatedly. The text is the reason."""


class Refused(Exception):
    """The server refused a call, or its reply cannot be trained on. The text is the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """One weight update of one server: its version, the bytes sent, and the seconds from pause to continue."""

    version: int
    bytes: int
    seconds: float


class Member(ABC, Generic[Payload]):
    """A server and its state in the fleet. `url` names it; an empty one stands for a server that this process
    starts."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.version = 0  # policy version of its weights
        self.ready = asyncio.Event()  # it may be sent requests
        self.lost = asyncio.Event()  # it has to be brought up again
        self.reason = ""  # why it was lost
        self.listed = True  # whether discovery still names it

    @abstractmethod
    async def bring_up(self) -> None:
        """Start or reach the server and check that it serves the run's model as version 0. It may be up already.

        Raises `BadInput`, `ServerGone` or `Refused`.
        """

    @abstractmethod
    async def load(self, version: int, payload: Payload) -> Loaded:
        """Bring a policy version in. After an error the server must not serve. Raises `ServerGone` or `Refused`."""

    @abstractmethod
    async def ended(self) -> str:
        """Wait until the process of a server that this process started has ended. Returns the reason; never returns for
        others.
        """

    @abstractmethod
    async def shut(self) -> None:
        """Close the connections; end the server if this process started it."""
