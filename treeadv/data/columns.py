"""Finds the columns of a row of data that treeadv needs. The configuration names them, or a known format does.

The known formats are treeadv's (problem, answer), GSM8K's (question, answer), verl's (prompt,
reward_model.ground_truth) and chat messages (messages, answer).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from treeadv.errors import BadInput
from treeadv.jsonl import JsonMapping, JsonObject

NEEDED = ("problem", "answer", "id", "meta", "verifier")
_KNOWN = {
    "problem": ("problem", "question", "prompt", "messages"),
    "answer": ("answer", "reward_model.ground_truth"),
}
LISTED = 16  # columns of a row that a message names
_ABSENT = object()
_EMPTY = {"NoneType": "null", "str": "empty", "list": "an empty list", "dict": "an empty object"}


def mapped_row(row: JsonMapping, columns: Mapping[str, str], where: str) -> JsonObject:
    """Return the row with the columns that `columns` names also under the keys of `columns`. All columns stay.

    Raises `BadInput` for a column that the row does not have. `where` names the row in the error.
    """
    found = dict(row)
    for name, path in columns.items():
        value = _lookup(row, path)
        if value is _ABSENT:
            raise BadInput(
                f"{where}: task.columns: {name} is {path}, which is not a column{_hint(path, row)} ({_of(row)})"
            )
        found[name] = value
    for name in _KNOWN:
        if (known := _path(name, row, columns)) is not None:
            found[name] = _lookup(row, known)
    return found


def missing_column(name: str, row: JsonMapping, columns: Mapping[str, str], where: str) -> BadInput:
    """Return the error for a row without a value of `name`. `row` is the row before `mapped_row`."""
    if (path := _path(name, row, columns)) is not None:
        state = _EMPTY[type(_lookup(row, path)).__name__]
        return BadInput(
            f"{where}: no {name}: the column {path} is {state}; remove the row, or name another column in task.columns"
        )
    wrong = next((key for key in columns if key not in NEEDED and _close(key, (name,))), None)
    remedy = f"task.columns names {wrong}, did you mean {name}?" if wrong else "name its column in task.columns"
    return BadInput(f"{where}: no {name}; each needs problem and answer ({_of(row)}); {remedy}")


def _path(name: str, row: JsonMapping, columns: Mapping[str, str]) -> str | None:
    """Return the path of the column `name` in a row: that of `columns`, or the first known one that the row has."""
    paths = (columns[name],) if name in columns else _KNOWN[name]
    return next((path for path in paths if _lookup(row, path) is not _ABSENT), None)


def _lookup(row: JsonMapping, path: str) -> object:
    """Return the column `path`, or the field at a path such as a.b. The field of a null column is None.

    Returns `_ABSENT` if the row has no such column."""
    value: object = row
    if path in row:
        return row[path]
    for key in path.split("."):
        if value is None:
            return None
        if not isinstance(value, Mapping) or key not in value:
            return _ABSENT
        value = value[key]
    return value


def _hint(path: str, row: JsonMapping) -> str:
    close = _close(path, tuple(map(str, row)))
    return f", did you mean {close}?" if close else ""


def _close(name: str, known: tuple[str, ...]) -> str:
    return next(iter(difflib.get_close_matches(name, known, n=1)), "")


def _of(row: JsonMapping) -> str:
    names = [f"{name:.40}" for name in map(str, row)]
    more = ", ..." if len(names) > LISTED else ""
    return f"this one has {', '.join(names[:LISTED]) or 'nothing'}{more}"
