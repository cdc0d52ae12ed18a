"""The errors a user is meant to read: one line that names the value, the place and the remedy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar


class BadInput(Exception):
    """A value that the user gave cannot be used. The command line prints the message and exits with `exit_code`."""

    exit_code: ClassVar[int] = 2


class RunFailed(BadInput):
    """A part of a run fails again and again; the message names the cause."""

    exit_code = 1


class BadForest(ValueError):
    """A forest breaks an invariant of the forest (docs/architecture.md): it is refused with its id and never
    trained."""

    def __init__(self, forest_id: str, reason: str) -> None:
        super().__init__(forest_id, reason)
        self.forest_id = forest_id
        self.reason = reason

    def __str__(self) -> str:
        return f"forest {self.forest_id}: {self.reason}"


def one_line(error: BaseException) -> str:
    """Return the message of an error of a library on one line, or the name of its type if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def single_errors(error: BaseException) -> Iterator[BaseException]:
    """Yield each error of an exception group and of the groups inside it; an error that is no group yields itself."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from single_errors(inner)
    else:
        yield error
