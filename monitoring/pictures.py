"""Draws the results of every panel's queries from a running Prometheus, with matplotlib.

python -m monitoring.pictures http://127.0.0.1:9090 docs/pictures --minutes 10
"""

from __future__ import annotations

import json
import re
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from monitoring.dashboards import BOARDS, Board
from monitoring.panels import Panel
from treeadv.command_line import run_command, tool_parser
from treeadv.jsonl import JsonObject

COLUMNS = 4
WINDOW = "1m"  # replaces Grafana's $__rate_interval
UNITS = {"percentunit": "share", "Bps": "bytes/s", "s": "seconds", "short": ""}


def draw(board: Board, address: str, start: float, end: float) -> Figure:
    """Return the figure of a dashboard. `start` and `end` are seconds since the epoch. The x axis is minutes since
    `start`."""
    rows = -(-len(board.panels) // COLUMNS)
    figure = Figure(figsize=(4.2 * COLUMNS, 2.6 * rows), layout="constrained")
    figure.suptitle(f"{board.title}: data of the panels")
    grid = figure.subplots(rows, COLUMNS, squeeze=False)
    for axes, panel in zip(grid.flat, board.panels, strict=False):
        _panel(axes, panel, address, start, end)
    for axes in grid.flat[len(board.panels) :]:
        axes.set_axis_off()
    return figure


def _panel(axes: Axes, panel: Panel, address: str, start: float, end: float) -> None:
    for query in panel.queries:
        for series in _range(address, query.expr, start, end):
            times, values = zip(*((t - start, float(v)) for t, v in series["values"]), strict=True)
            axes.plot([t / 60 for t in times], values, label=_legend(query.legend, series["metric"]), linewidth=1.2)
    axes.set_title(panel.title, fontsize=9)
    axes.set_ylabel(_unit(panel.queries[0].unit), fontsize=7)
    axes.tick_params(labelsize=7)
    if axes.lines:
        axes.legend(fontsize=6)


def _unit(name: str) -> str:
    """Return a unit of Grafana as readable text."""
    return UNITS.get(name, name.removeprefix("suffix: ").removeprefix("si: "))


def _range(address: str, expression: str, start: float, end: float) -> list[JsonObject]:
    text = expression.replace("$__rate_interval", WINDOW).replace("$run", ".*")
    query = urllib.parse.urlencode(
        {"query": text, "start": start, "end": end, "step": max(1, int((end - start) / 120))}
    )
    with urllib.request.urlopen(f"{address}/api/v1/query_range?{query}", timeout=30) as reply:
        return json.load(reply)["data"]["result"]


def _legend(template: str, labels: dict[str, str]) -> str:
    """Return a legend with its labels filled in as Grafana does. A label that the series does not have is empty."""
    return re.sub(r"\{\{(\w+)\}\}", lambda m: labels.get(m[1], ""), template).strip()


def write(address: str, folder: Path, start: float, end: float) -> None:
    """Write one PNG file for each dashboard, named after the dashboard."""
    matplotlib.use("agg")
    folder.mkdir(parents=True, exist_ok=True)
    for board in BOARDS:
        draw(board, address, start, end).savefig(folder / f"{board.name}.png", dpi=70)


def main(argv: Sequence[str] | None = None) -> None:
    parser = tool_parser("python -m monitoring.pictures", __doc__)
    parser.add_argument("address", help="URL of Prometheus")
    parser.add_argument("folder", type=Path, help="folder for the PNG files")
    parser.add_argument("--minutes", type=float, default=10.0, help="length of the time range, which ends now")
    args = parser.parse_args(argv)
    now = time.time()
    write(args.address, args.folder, now - 60 * args.minutes, now)


if __name__ == "__main__":
    sys.exit(run_command(main))
