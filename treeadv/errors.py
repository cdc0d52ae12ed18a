"""Errors for users. The message of an error is one line that names the value, the place and the remedy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar


class BadInput(Exception):
    """A value of the user's input cannot be used. The command line prints the message and exits with `exit_code`."""

    exit_code: ClassVar[int] = 2


class RunFailed(BadInput):
    """A part of a run failed repeatedly. The message names the cause."""

    exit_code = 1


class BadForest(ValueError):
    """A forest breaks an invariant (docs/architecture.md). The message names the forest's id. Such a forest is never
    trained."""

    def __init__(self, forest_id: str, reason: str) -> None:
        super().__init__(forest_id, reason)
        self.forest_id = forest_id
        self.reason = reason

    def __str__(self) -> str:
        return f"forest {self.forest_id}: {self.reason}"


def one_line(error: BaseException) -> str:
    """Return the message of a library's error on one line. If the message is empty, return the name of the error's
    type."""
    return " ".join(str(error).split()) or type(error).__name__


def short(value: object) -> str:
    """Return the representation of a value for a message. A long representation is cut at its end."""
    shown = repr(value)
    return shown if len(shown) <= 64 else f"{shown[:64]}..."


def single_errors(error: BaseException) -> Iterator[BaseException]:
    """Yield each error of an exception group and of its inner groups. For any other error, yield the error itself."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from single_errors(inner)
    else:
        yield error
