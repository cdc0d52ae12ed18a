"""The files of the page.

The modules of the page import each other by bare names, which an import map resolves. On the server the map has paths.
In a bundle it has `data:` addresses, because a browser loads no module from a file."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

STYLE = "style.css"
ICON = "icon.svg"
MODULES: Mapping[str, str] = {  # file by bare name
    "preact": "vendor/preact.js",
    "preact/hooks": "vendor/preact-hooks.js",
    "htm": "vendor/htm.js",
    **{
        f"view/{name}.js": f"{name}.js"
        for name in (
            "badges", "colours", "data", "drawing", "filters", "forest", "html", "layout", "list", "main", "map",
            "matrix", "state", "text", "verdict",
        )
    },
}  # fmt: skip
TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
STATIC = (STYLE, ICON, *MODULES.values())


@cache
def static(name: str) -> bytes:
    """Return the content of a file of `STATIC`."""
    return files("treeadv.view").joinpath("static").joinpath(name).read_bytes()


def served_page(title: str) -> tuple[str, str]:
    """Return the page of the server, and its Content-Security-Policy."""
    imports = _json({"imports": {name: f"/static/{file}" for name, file in MODULES.items()}})
    start = "import 'view/main.js'"
    head = (
        f'<link rel="stylesheet" href="/static/{STYLE}"><link rel="icon" href="/static/{ICON}">'
        f'<script type="importmap">{imports}</script><script type="module">{start}</script>'
    )
    hashes = " ".join(f"'sha256-{_sha256(code)}'" for code in (imports, start))
    policy = (
        f"default-src 'none'; script-src 'self' {hashes}; style-src 'self'; img-src 'self' data:;"
        " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return _page(title, "server", head), policy


def bundled_page(title: str) -> str:
    """Return the page of a bundle. The page needs only the data files of the bundle."""
    imports = _json({"imports": {name: _data_address(file) for name, file in MODULES.items()}})
    head = (
        f'<link rel="icon" href="{_data_address(ICON)}"><style>{static(STYLE).decode()}</style>'
        f'<script type="importmap">{imports}</script><script type="module">import "view/main.js"</script>'
    )
    return _page(title, "bundle", head)


def _page(title: str, mode: str, head: str) -> str:
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title>{head}</head>"
        f'<body data-mode="{mode}"><div id="app"></div>'
        "<noscript>This page needs JavaScript.</noscript></body></html>\n"
    )


def _data_address(file: str) -> str:
    kind = TYPES[file[file.rindex(".") :]]
    return f"data:{kind};base64,{base64.b64encode(static(file)).decode()}"


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
