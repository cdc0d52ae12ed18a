"""Reads and checks the files that the cells of a study leave: results, looks, and the record of the machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from treeadv.errors import BadInput, short
from treeadv.jsonl import JsonMapping, JsonObject, read_json, read_object
from treeadv.storage.record_fields import check_number
from treeadv.study.spec import Cell

RESULT, LOOKS, MACHINE = "cell.json", "looks.json", "machine.json"
Result = JsonObject  # the content of cell.json
_LOOK = ("tokens_generated", "accuracy", "tokens_mean")  # the numbers of a look that reports read
_SERIES = ("tokens_generated", "zero_variance", "sharing")
_SESSION = ("command", "date", "cpu", "cores", "python")


def read_result(home: Path, cell: Cell) -> Result | None:
    """Return the result of a cell; None if the cell is not finished. Raises `BadInput` for a damaged file."""
    path = home / "cells" / cell.folder / RESULT
    if not path.exists():
        return None
    found, remedy = read_object(path), f"restore the file, or delete {path.parent}: study run then runs the cell again"
    try:
        _check_result(found, cell)
    except (ValueError, KeyError, TypeError) as e:
        raise BadInput(f"{path}: is no result of a cell ({_said(e)}); {remedy}") from e
    return found


def read_looks(folder: Path) -> JsonObject:
    """Return the looks of a cell by their step. Raises `BadInput` for a damaged file."""
    path = folder / LOOKS
    found = read_object(path) if path.exists() else {}
    for step, look in found.items():
        if not step.isdecimal():
            raise BadInput(f"{path}: {short(step)} is no step; {_LOOK_AGAIN}")
        _checked_look(look, f"{path}: step {step}")
    return found


def read_look(path: Path) -> JsonObject:
    """Return the look before the first step, which cells share. Raises `BadInput` for a damaged file."""
    return _checked_look(read_object(path), str(path))


def read_sessions(home: Path) -> list[JsonObject]:
    """Return the calls of `treeadv study run` with their machines. Raises `BadInput` for a damaged file."""
    path = home / MACHINE
    found = read_json(path) if path.exists() else []
    if not isinstance(found, list) or not all(_is_session(session) for session in found):
        raise BadInput(
            f"{path}: must be a list of calls, each with {', '.join(_SESSION)}; restore the file, or delete it and lose"
            " the names of the machines"
        )
    return found


_LOOK_AGAIN = "restore the file, or delete it: study run then looks again"


def _is_session(session: object) -> bool:
    return isinstance(session, dict) and all(isinstance(session.get(name), str | int) for name in _SESSION)


def _checked_look(look: object, where: str) -> JsonObject:
    try:
        if not isinstance(look, dict):
            raise TypeError(f"a JSON object is needed, found {type(look).__name__}")
        _check_look(look)
    except (ValueError, KeyError, TypeError) as e:
        raise BadInput(f"{where}: is no look of a study ({_said(e)}); {_LOOK_AGAIN}") from e
    return look


def _check_look(look: JsonMapping) -> None:
    for name in _LOOK:
        check_number(name, look[name], finite=name != "tokens_mean")


def _check_result(found: JsonMapping, cell: Cell) -> None:
    """Raise an error for a result that reports cannot read, or that is of another cell."""
    if (found["row"], found["seed"]) != (cell.row, cell.seed):
        raise ValueError(f"it is of row {short(found['row'])}, seed {short(found['seed'])}")
    if found["status"] == "failed":
        if not isinstance(found["reason"], str):
            raise ValueError("its reason is no text")
        return
    if found["status"] != "done":
        raise ValueError(f"its status is {short(found['status'])}, neither done nor failed")
    check_number("seconds", found["seconds"])
    for name in ("accuracy", "tokens_mean"):
        check_number(name, found["test"][name], finite=name != "tokens_mean")
    if not found["looks"]:
        raise ValueError("it has no looks")
    for look in found["looks"]:
        _check_look(look)
    for name, values in ((name, list(_numbers(name, found["series"][name]))) for name in _SERIES):
        if not values:
            raise ValueError(f"its series {name} is empty")


def _numbers(name: str, values: list[object]) -> Iterator[object]:
    for value in values:
        check_number(name, value, finite=name == "tokens_generated")
        yield value


def _said(error: Exception) -> str:
    """Return what is wrong with a value, for an error message."""
    return f"it has no {error.args[0]}" if isinstance(error, KeyError) else str(error)
