"""Reading JSON files and JSON Lines: one JSON value a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from treeadv.errors import BadInput, one_line


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises `BadInput` with the file for one that cannot be read or is no JSON."""
    try:
        return json.loads(path.read_bytes())
    except OSError as e:
        raise BadInput(f"{path}: cannot be read ({e.strerror})") from e
    except (ValueError, RecursionError) as e:  # also bytes that are no text, and integers of more than 4,300 digits
        raise BadInput(f"{path}: is not JSON ({one_line(e)}); restore the file") from e


def read_jsonl(path: Path, holds: str) -> Iterator[tuple[int, Any]]:
    """Yield (line number from 1, value) of each line that is not blank. A byte order mark and CRLF are allowed.

    `holds` says in errors what a line is. Raises `BadInput` with file and line for bytes that are no UTF-8 or no JSON.
    """
    with path.open("rb") as lines:
        for n, raw in enumerate(lines, 1):
            try:
                line = raw.decode("utf-8-sig" if n == 1 else "utf-8").strip()
                if line:
                    yield n, json.loads(line)
            except UnicodeDecodeError as e:
                raise BadInput(f"{path}:{n}: not UTF-8 text ({e.reason} at byte {e.start} of the line)") from e
            except (ValueError, RecursionError) as e:
                raise BadInput(f"{path}:{n}: not JSON ({e}); a line is {holds}") from e
