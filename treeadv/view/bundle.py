"""Writes the page with its forests as files that a browser opens without a server."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from treeadv.errors import BadForest, BadInput
from treeadv.storage.disk import replace_file
from treeadv.view.catalogue import Catalogue
from treeadv.view.encoding import forest_json
from treeadv.view.pages import bundled_page
from treeadv.visible import visible

DATA = "data"  # the folder of the forests, beside index.html


def write_bundle(
    catalogue: Catalogue, target: Path, chosen: Callable[[Any], bool] = lambda row: True, shown: Any = None
) -> tuple[int, int]:
    """Write the page into the folder `target`, which must be empty or not exist. Returns (forests, bytes).

    `chosen` says of each row whether it belongs to the bundle. `shown(done, total)` is called after each forest.
    Raises `BadInput`."""
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
    size = written = 0
    for n, row in enumerate(rows):
        if row["readable"] and not row["facts"]["fault"]:
            row["file"] = f"{DATA}/forest-{n}.js"
            size += _write(target / row["file"], row["key"], _forest(catalogue, row["key"]))
            written += 1
        if shown:
            shown(n + 1, len(rows))
    run = {**about, "state": "bundle", "was": about["state"], "rows": len(rows), "read": written, "readable": written}
    size += _write(target / DATA / "run.js", "", {"run": run, "rows": rows, "prompts": prompts})
    page = bundled_page(f"{about['name']} · treeadv")
    replace_file(target / "index.html", page)
    return written, size + len(page.encode())


def _forest(catalogue: Catalogue, key: str) -> dict[str, Any]:
    source = catalogue.source
    try:
        return forest_json(catalogue.forest(key), source.vocabulary, source.advantage)
    except (BadForest, BadInput) as e:  # the payload was let go, or damaged, while the bundle was written
        return {"error": visible(str(e))}


def _write(path: Path, key: str, value: Any) -> int:
    """Write a script that gives `value` to the page. Returns its bytes."""
    name, body = json.dumps(key), json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    script = f"treeadvData({name},{body})\n"
    path.write_text(script, encoding="utf-8")
    return len(script.encode())
