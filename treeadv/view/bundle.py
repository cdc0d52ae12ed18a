"""Writes the page and its forests as files. A browser opens them without a server."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from treeadv.disk import replace_file
from treeadv.errors import BadInput
from treeadv.jsonl import JsonObject
from treeadv.view.catalogue import Catalogue
from treeadv.view.encoding import encode_row
from treeadv.view.pages import bundled_page
from treeadv.visible import visible

DATA = "data"  # the folder of the forests, in the same folder as index.html
FULL_FILE = 1 << 18  # a file of forests with at least this many characters gets no further forest


def write_bundle(
    catalogue: Catalogue,
    target: Path,
    chosen: Callable[[JsonObject], bool] = lambda row: True,
    shown: Callable[[int, int], None] | None = None,
) -> tuple[int, int]:
    """Write the page into the folder `target`, which must be empty or not exist. Returns (forests, bytes).

    `chosen` returns whether a row belongs to the bundle. `shown(done, total)` is called after each forest. Raises
    `BadInput`."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise BadInput(f"--bundle {target}: it exists and is not an empty folder; choose another")
    catalogue.read_all()
    about = catalogue.about()
    changes = catalogue.changes(0, about["rows"])
    rows = [row for row in changes["rows"] if chosen(row)]
    rows.sort(key=lambda row: (row["draw"], row["attempt"]))
    used = {row["facts"]["prompt_key"] for row in rows if row.get("facts")}
    prompts = {key: text for key, text in changes["prompts"].items() if key in used}
    try:
        (target / DATA).mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise BadInput(f"--bundle {target}: cannot be made ({e.strerror}); choose another folder") from e
    scripts = _Scripts(target)
    for n, row in enumerate(rows):
        if row["readable"] and not row["facts"]["fault"]:
            row["file"] = scripts.add(row["key"], _forest(catalogue, row["key"]))
        if shown:
            shown(n + 1, len(rows))
    written = sum("file" in row for row in rows)
    run = {**about, "state": "bundle", "was": about["state"], "rows": len(rows), "read": written, "readable": written}
    scripts.close()
    scripts.write("run", [_call("", {"run": run, "rows": rows, "prompts": prompts})])
    page = bundled_page(f"{about['name']} · treeadv")
    replace_file(target / "index.html", page)
    return written, scripts.size + len(page.encode())


class _Scripts:
    """The scripts with the forests of a bundle. A script has several forests if they are small."""

    def __init__(self, target: Path) -> None:
        self.size = 0  # number of bytes written
        self._target, self._number = target, 0
        self._calls: list[str] = []
        self._length = 0

    def add(self, key: str, value: object) -> str:
        """Add a forest. Returns the path of its file in the bundle."""
        name = f"part-{self._number}"
        self._calls.append(_call(key, value))
        self._length += len(self._calls[-1])
        if self._length >= FULL_FILE:
            self.close()
        return f"{DATA}/{name}.js"

    def close(self) -> None:
        """Write the forests that are not written yet."""
        if self._calls:
            self.write(f"part-{self._number}", self._calls)
        self._number += 1
        self._calls, self._length = [], 0

    def write(self, name: str, calls: list[str]) -> None:
        data = "".join(calls).encode()
        replace_file(self._target / DATA / f"{name}.js", data)
        self.size += len(data)


def _forest(catalogue: Catalogue, key: str) -> JsonObject:
    try:
        return encode_row(catalogue.source, key)
    except BadInput as e:  # the payload was deleted or damaged while the bundle was written
        return {"error": visible(str(e))}


def _call(key: str, value: object) -> str:
    """Return the line of a script that passes `value` to the page."""
    body = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return f"treeadvData({json.dumps(key)},{body})\n"
