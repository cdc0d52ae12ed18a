"""Readers of JSON files, and of JSON Lines files with one JSON value on each line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from treeadv.errors import BadInput, one_line

JsonObject: TypeAlias = dict[str, Any]  # an object of JSON values
JsonMapping: TypeAlias = Mapping[str, Any]  # an object of JSON values that its reader does not change


def read_json(path: Path) -> Any:
    """Return the value in a JSON file. Raises `BadInput` if the file cannot be read or is not JSON."""
    try:
        return json.loads(path.read_bytes())
    except OSError as e:
        raise BadInput(f"{path}: cannot be read ({e.strerror})") from e
    except (ValueError, RecursionError) as e:  # includes bytes that are not text, and integers over 4,300 digits
        raise BadInput(f"{path}: is not JSON ({reason(e)}); restore the file") from e


def read_jsonl(path: Path, expected: str) -> Iterator[tuple[int, Any]]:
    """Yield (line number from 1, value) of each line that is not blank. The file may have a byte order mark and CRLF.

    `expected` describes a line in error messages. Raises `BadInput` with file and line for a line that is not UTF-8
    or not JSON."""
    with path.open("rb") as lines:
        for n, raw in enumerate(lines, 1):
            try:
                line = raw.decode("utf-8-sig" if n == 1 else "utf-8").strip()
                if line:
                    yield n, json.loads(line)
            except UnicodeDecodeError as e:
                raise BadInput(f"{path}:{n}: not UTF-8 text ({e.reason} at byte {e.start} of the line)") from e
            except (ValueError, RecursionError) as e:
                raise BadInput(f"{path}:{n}: not JSON ({reason(e)}); a line is {expected}") from e


def reason(error: Exception) -> str:
    """Return the reason why a text is not JSON, on one line."""
    if type(error) is ValueError:  # more than 4,300 digits; Python's message names a remedy in Python code
        return "an integer has more than 4300 digits: write it as a text"
    return one_line(error)
