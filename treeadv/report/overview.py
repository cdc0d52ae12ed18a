"""Lists the runs of a folder, and compares several runs: differences of their configurations, figures and curves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from xml.etree.ElementTree import Element

from treeadv.config import Config
from treeadv.errors import BadInput
from treeadv.evaluation.history import best, value
from treeadv.jsonl import JsonMapping
from treeadv.report import chart
from treeadv.report.chart import SERIES_COLOURS, Chart, Series, number
from treeadv.report.curves import CHARTS
from treeadv.report.digest import Digest, digest, evenly
from treeadv.report.markup import add
from treeadv.report.page import finish, page, table
from treeadv.report.progress import clock
from treeadv.storage.lock import in_use
from treeadv.storage.run_folder import RunFolder, not_a_run


@dataclass(frozen=True, kw_only=True)
class Run:
    """The content of the files of one run. `state` is finished, running, stopped or damaged. `fault` says what is
    damaged."""

    path: Path
    config: Config | None
    records: Digest | None
    evaluations: Sequence[JsonMapping]
    state: str
    fault: str = ""

    @property
    def steps(self) -> int:
        """Return the last recorded step."""
        return int(self.records.last["step"]) if self.records and self.records.count else 0

    @property
    def started(self) -> datetime:
        """Return the oldest modification time in the folder, which approximates the start of the run."""
        return datetime.fromtimestamp(min(p.stat().st_mtime for p in self.path.iterdir()))

    def reward(self) -> float | None:
        """Return the mean reward of the last fifth of the steps; None without a step."""
        return self.records.reward()[1] if self.records and self.records.count else None

    def figures(self) -> dict[str, str]:
        """Return the final figures by name, as text. A figure that the run did not record is a dash."""
        if not self.records or not self.records.count:
            return {"steps": "0"}
        last, found = self.records.last, best(list(self.evaluations))
        expanded = last["tokens_expanded"]
        return {
            "steps": str(last["step"]),
            "time": clock(last["elapsed_s"]),
            "reward, last fifth": f"{self.reward():.3f}",
            "best evaluation": "-" if found is None else f"{value(found):.3f} at step {found['step']}",
            "tokens generated": number(last["tokens_generated"]),
            "tokens trained": number(last["tokens_trained"]),
            "sharing in training": f"{1 - last['tokens_trained'] / expanded:.0%}" if expanded else "-",
            "largest staleness": str(self.records.staleness),
        }


def read_run(path: Path) -> Run:
    """Read one run. Raises `BadInput` if the folder is no run. A damaged file gives a run with the state damaged."""
    if not (path / "config.yaml").is_file():
        raise not_a_run(path)
    try:
        folder, config = RunFolder.open(path, [])
        records, evaluations = digest(folder), folder.evaluations()
    except BadInput as e:
        return Run(path=path, config=None, records=None, evaluations=(), state="damaged", fault=str(e))
    state = run_state(path, config, records.last.get("step", 0))
    return Run(path=path, config=config, records=records, evaluations=evaluations, state=state)


def run_state(path: Path, config: Config, step: int) -> str:
    """Return running, finished or stopped. `step` is the last recorded step. A run whose driver is on another machine
    does not count as running."""
    return "running" if in_use(path) else "finished" if step >= config.run.steps else "stopped"


def runs_in(root: Path) -> list[Run]:
    """Return the runs of a folder, newest first. Raises `BadInput` if the folder does not exist."""
    if not root.is_dir():
        kind = "a file" if root.exists() else "no folder"
        raise BadInput(f"{root} is {kind}; give the folder run.root of the runs (default runs)")
    found = (read_run(p.parent) for p in root.glob("*/config.yaml"))
    return sorted(found, key=lambda run: run.started, reverse=True)


def differences(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Return (key, value of each run) for every key of the configuration that differs, except for the run's name."""
    flat = [dict(_flat(run.config.model_dump(mode="json"))) if run.config else {} for run in runs]
    keys = dict.fromkeys(key for values in flat for key in values)
    rows = [(key, [str(values.get(key, "-")) for values in flat]) for key in keys if key != "run.name"]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def comparison_page(runs: Sequence[Run]) -> str:
    """Return a self-contained page: figures, differing keys, and each curve with one line for each run.

    Raises `BadInput` for more runs than a chart has colours."""
    if len(runs) > SERIES_COLOURS:
        raise BadInput(f"{len(runs)} runs: a page compares at most {SERIES_COLOURS}")
    names = [run.path.name for run in runs]
    root, main = page("treeadv: " + ", ".join(names))
    add(main, "h1", f"{len(runs)} runs")
    _rows(main, "Figures", names, figure_rows(runs))
    _rows(main, "Differences of the configurations", names, differences(runs))
    longest = max(run.steps for run in runs)
    drawn = [evenly(RunFolder(run.path), run.steps, longest) if run.steps else [] for run in runs]
    steps = sorted({r["step"] for records in drawn for r in records})
    if steps:
        add(main, "h2", "Curves")
        grid = add(main, "div", class_="charts")
        for title, unit, keys in CHARTS:
            for key, label in keys.items():
                by_step = [{r["step"]: r.get(key) for r in records} for records in drawn]
                series = [
                    Series(label=name, values=[v.get(s) for s in steps]) for name, v in zip(names, by_step, strict=True)
                ]
                if any(v is not None for s in series for v in s.values):
                    heading = title if len(keys) == 1 else f"{title}: {label}"
                    grid.append(chart.draw(Chart(title=heading, unit=unit, series=series), steps))
    return finish(root)


def figure_rows(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Return (figure, value of each run) for the final figures."""
    figures = [run.figures() | {"state": run.state} for run in runs]
    names = dict.fromkeys(name for f in figures for name in f)
    return [(name, [f.get(name, "-") for f in figures]) for name in names]


def _rows(main: Element, title: str, names: Sequence[str], rows: Sequence[tuple[str, list[str]]]) -> None:
    add(main, "h2", title)
    if not rows:
        add(main, "p", "None.")
        return
    body = table(main, ["", *names])
    for key, values in rows:
        line = add(body, "tr")
        add(line, "th", key, scope="row")
        for text in values:
            add(line, "td", text)


def _flat(tree: JsonMapping, prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, inner in tree.items():
        if isinstance(inner, dict) and inner:
            yield from _flat(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", inner
