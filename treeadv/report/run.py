"""Writes report.html of a run from the files in its folder: figures, curves, an early forest and a late forest."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from treeadv.config import Config
from treeadv.errors import BadInput
from treeadv.evaluation.history import best, value
from treeadv.forest import Forest
from treeadv.learning.advantage import advantages
from treeadv.presets import build_advantage
from treeadv.replay.history import RecordedSteps
from treeadv.report import chart
from treeadv.report.chart import Chart, Series, number
from treeadv.report.curves import CHARTS, add_curves
from treeadv.report.health import advice, alarms
from treeadv.report.markup import add
from treeadv.report.page import finish, forest_article, page, table
from treeadv.report.picture import Numbers, Vocabulary, picture
from treeadv.report.progress import clock, summary_rows
from treeadv.storage.disk import replace_file
from treeadv.storage.run_folder import RunFolder

MAX_SEARCHED = 30  # number of first and last steps that are searched for a forest with different rewards


def write_report(path: Path) -> Path:
    """Write report.html into the run folder `path` atomically and return its path.

    Raises `BadInput` if `path` is not a run folder."""
    folder, config = RunFolder.open(path, [])
    target = path / "report.html"
    replace_file(target, run_page(folder, config))
    return target


def run_page(folder: RunFolder, config: Config) -> str:
    """Return the page. The page names the figures that the run did not record."""
    records = folder.records()
    root, main = page(f"treeadv run {folder.path.name}")
    add(main, "h1", f"Run {folder.path.name}")
    what = (
        f"{Path(config.model.path).name} on {config.task.title}; preset {config.learner.preset}, fork rule"
        f" {config.sampling.rule}"
    )
    add(main, "p", what, class_="soft")
    if not records:
        add(main, "p", "The run has completed no step.")
        return finish(root)
    _health(main, records, config, local=not (folder.path / "targets.json").is_file())
    _tiles(main, records, config)
    add_curves(main, records)
    _evaluations(main, folder.evaluations())
    _happenings(main, folder, records)
    _forests(main, folder, config, [r["step"] for r in records])
    _steps(main, records)
    details = add(main, "details")
    add(details, "summary", "Configuration")
    add(details, "pre", config.to_yaml(), class_="text")
    return finish(root)


def _tiles(main: Element, records: Sequence[dict[str, Any]], config: Config) -> None:
    fifth = max(1, len(records) // 5)
    first, final = (sum(r["reward_mean"] for r in part) / fifth for part in (records[:fifth], records[-fifth:]))
    last = records[-1]
    trained, expanded = last["tokens_trained"], last["tokens_expanded"]
    tiles = add(main, "dl", class_="tiles")
    figures = (
        ("Mean reward", f"{first:.2f} → {final:.2f}", "first and last fifth of the steps"),
        ("Steps", f"{last['step']} of {config.run.steps}", f"in {clock(last['elapsed_s'])}"),
        ("Tokens generated", number(last["tokens_generated"]), "each drawn once"),
        ("Tokens trained", number(trained), f"instead of {number(expanded)}: {1 - trained / expanded:.0%} shared"),
        (
            "Staleness",
            f"≤ {max(r['staleness_max'] for r in records)}",
            f"versions; the bound is {config.queue.max_staleness}",
        ),
    )
    for name, shown, note in figures:
        tile = add(tiles, "div", class_="card")
        add(tile, "dt", name)
        add(add(tile, "dd", shown), "small", note)


def _health(main: Element, records: Sequence[dict[str, Any]], config: Config, local: bool) -> None:
    """List what is wrong with the run; where nothing is, what is idle and which option changes that."""
    wrong = alarms(records)
    found = wrong or advice(records, config, local)
    card = add(main, "div", class_="card", style="margin-top:20px")
    if not found:
        add(card, "h3", "No alarm, and nothing idle to mend.")
        return
    add(card, "h3", f"Alarms: {len(wrong)}" if wrong else "No alarm. What could be better:")
    body = table(card, ("Last steps", "What helps"))
    for finding in found:
        row = add(body, "tr")
        add(row, "td", f"{finding.what}.", class_="badge wrong" if wrong else "")
        add(row, "td", f"{finding.remedy}.")


def _evaluations(main: Element, records: Sequence[dict[str, Any]]) -> None:
    """Draw the share of correct answers on held-out problems over the steps, and list the evaluations."""
    if not records:
        return
    add(main, "h2", "Held-out problems")
    found, steps = best(records), [r["step"] for r in records]
    assert found is not None
    note = f"The best weights are those of step {found['step']}, with {value(found):.3f}."
    add(main, "p", note + " They are in best/." * bool(found["step"]), class_="soft")
    names = list(records[-1]["sets"])
    grid = add(main, "div", class_="charts")
    mean = [Series("mean of the sets", [value(r) for r in records])] if len(names) > 1 else []
    sets = [Series(n, [_of_set(r, n)["avg"]["value"] for r in records]) for n in names][: chart.SERIES_COLOURS - 1]
    samples = _of_set(records[-1], names[0])["samples"]
    grid.append(chart.draw(Chart(f"avg@{samples}", "share of correct answers", [*mean, *sets]), steps))
    lengths = [Series(n, [_of_set(r, n)["tokens_mean"] for r in records]) for n in names][: chart.SERIES_COLOURS]
    grid.append(chart.draw(Chart("Length", "tokens of an answer", lengths), steps))
    body = table(main, ("Step", "Value", "95 % interval", "Cut", "Seconds"), numeric=range(5))
    for r in records:
        row, interval = add(body, "tr"), r["avg"]["interval"]
        shown = "" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"
        cut = max(s["cut"] for s in r["sets"].values())
        mark = " (best)" if r is found else ""
        for cell in (f"{r['step']}{mark}", f"{value(r):.3f}", shown, f"{cut:.0%}", f"{r['seconds']:.1f}"):
            add(row, "td", cell, class_="n")


def _of_set(record: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = record["sets"][name]
    return found


def _happenings(main: Element, folder: RunFolder, records: Sequence[dict[str, Any]]) -> None:
    add(main, "h2", "What happened")
    card = add(main, "div", class_="card")
    body = table(card, ("Figure", "Value"))
    summary = folder.path / "summary.json"
    rows = list(summary_rows(json.loads(summary.read_text()))) if summary.is_file() else []
    verdicts: dict[str, int] = {}
    for r in records:
        for name, count in r.get("verdicts", {}).items():
            verdicts[name] = verdicts.get(name, 0) + count
    if verdicts:
        rows.append(("verdicts of the leaves trained", ", ".join(f"{name} {n:,}" for name, n in verdicts.items())))
    if dropped := records[-1].get("dropped") if records else None:
        rows.append(("forests dropped", ", ".join(f"{reason} {n:,}" for reason, n in dropped.items())))
    rows.append(("checkpoints", ", ".join(f"step-{step}" for step in folder.checkpoints()) or "none"))
    for name, shown in rows:
        row = add(body, "tr")
        add(row, "th", name, scope="row")
        add(row, "td", shown)
    if not summary.is_file():
        add(card, "p", "The run has no summary.json: the run has not ended, or its driver was killed.", class_="soft")


def _forests(main: Element, folder: RunFolder, config: Config, steps: Sequence[int]) -> None:
    """Draw an early and a late forest with different rewards. Without such a forest, write the reason."""
    add(main, "h2", "An early and a late forest")
    add(
        main,
        "p",
        "All rollouts of one prompt. Hover a token for its probability, entropy and policy version.",
        class_="soft",
    )
    spec, vocabulary = build_advantage(config.learner.preset, config.learner.advantage), _vocabulary(folder, config)
    if isinstance(vocabulary, Numbers):
        add(main, "p", "The model's tokenizer is not at hand, so tokens are shown as numbers.", class_="soft")
    first, last = steps[:MAX_SEARCHED], steps[: -MAX_SEARCHED - 1 : -1]
    try:
        recorded = RecordedSteps(str(folder.path), {*first, *last})
    except BadInput as e:  # no queue in this folder
        add(main, "p", f"{e}.")
        return
    early, fault = first_mixed(recorded, first)
    late, _ = first_mixed(recorded, [s for s in last if early is None or s > early[0]])
    if early is None and late is None:
        add(main, "p", fault or "In every searched forest all leaves have the same reward: all advantages are 0.")
    for found in (early, late):
        if found:
            step, forest = found
            drawn = picture(forest, vocabulary, advantages(forest, spec)[0])
            main.append(forest_article(drawn, f"Trained in step {step}: forest {forest.forest_id}"))


def first_mixed(recorded: RecordedSteps, steps: Iterable[int]) -> tuple[tuple[int, Forest] | None, str]:
    """((step, forest), "") for the first of `steps` that trained a forest with different rewards, the one that forks
    most; else (None, why the last step that could not be read could not)."""
    fault = ""
    for step in steps:
        try:
            forests = recorded.forests(step)
        except BadInput as e:  # payloads that were let go: another step may have its own
            fault = f"{e}."
            continue
        mixed = [f for f in forests if len(set(f.reward[f.judged].tolist())) > 1]
        if mixed:
            return (step, max(mixed, key=lambda f: f.segments)), ""
    return None, fault


def _vocabulary(folder: RunFolder, config: Config) -> Vocabulary | Numbers:
    for place in _model_folders(folder, config):
        if (place / "tokenizer.json").is_file():
            return Vocabulary(place)
    return Numbers()


def _model_folders(folder: RunFolder, config: Config) -> Iterator[Path]:
    yield from (folder.checkpoint(step) for step in reversed(folder.checkpoints()))
    yield Path(config.model.path)
    yield Path(config.model.cache) / config.model.path


def _steps(main: Element, records: Sequence[dict[str, Any]]) -> None:
    keys = ["step", "elapsed_s", *(k for _, _, shown in CHARTS for k in shown if any(k in r for r in records))]
    details = add(main, "details")
    add(details, "summary", f"All {len(records)} steps as a table")
    body = table(details, [k.replace("_", " ") for k in keys], numeric=range(len(keys)))
    for r in records:
        row = add(body, "tr")
        for k in keys:
            add(row, "td", "" if r.get(k) is None else number(r[k]), class_="n")
