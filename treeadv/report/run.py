"""Writes report.html of a run from the files in its folder: figures, curves, an early forest and a late forest."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from xml.etree.ElementTree import Element

from treeadv.config import Config
from treeadv.disk import replace_file
from treeadv.errors import BadInput, one_line
from treeadv.evaluation.history import best, value
from treeadv.forest import Forest
from treeadv.jsonl import JsonObject
from treeadv.learning.advantage import advantages
from treeadv.presets import build_advantage
from treeadv.replay.history import RecordedSteps
from treeadv.report import chart, timeline
from treeadv.report.chart import Chart, Series, number
from treeadv.report.curves import CHARTS, add_curves
from treeadv.report.digest import Digest, digest, evenly
from treeadv.report.health import advice, alarms, sentence
from treeadv.report.markup import add
from treeadv.report.page import finish, forest_article, page, table
from treeadv.report.picture import Numbers, picture
from treeadv.report.progress import clock, summary_rows
from treeadv.report.vocabulary import run_vocabulary
from treeadv.storage.record_fields import DAMAGED
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
    records = digest(folder, MAX_SEARCHED)
    root, main = page(f"treeadv run {folder.path.name}")
    add(main, "h1", f"Run {folder.path.name}")
    what = (
        f"{Path(config.model.path).name} on {config.task.title}; preset {config.learner.preset}, fork rule"
        f" {config.sampling.rule}"
    )
    add(main, "p", what, class_="soft")
    if not records.count:
        add(main, "p", "The run has completed no step.")
        return finish(root)
    shown = evenly(folder, records.last["step"], records.last["step"])
    recent = [*(r for r in shown if r["step"] < records.tail[0]["step"]), *records.tail]
    local = not (folder.path / "targets.json").is_file()
    _health(main, recent, config, local)
    _tiles(main, records, config)
    if (drawn := timeline.draw(records.tail, config.generator.count, local)) is not None:
        main.append(drawn)
    add_curves(main, shown, records.count)
    _evaluations(main, folder.evaluations())
    _happenings(main, folder, records)
    _forests(main, folder, config, records)
    _steps(main, records.count, shown)
    details = add(main, "details")
    add(details, "summary", "Configuration")
    add(details, "pre", config.to_yaml(), class_="text")
    return finish(root)


def _tiles(main: Element, records: Digest, config: Config) -> None:
    first, final = records.reward()
    last = records.last
    trained, expanded = last["tokens_trained"], last["tokens_expanded"]
    tiles = add(main, "dl", class_="tiles")
    figures = (
        ("Mean reward", f"{first:.2f} → {final:.2f}", "first and last fifth of the steps"),
        ("Steps", f"{last['step']} of {config.run.steps}", f"in {clock(last['elapsed_s'])}"),
        ("Tokens generated", number(last["tokens_generated"]), "each drawn once"),
        ("Tokens trained", number(trained), f"instead of {number(expanded)}: {1 - trained / expanded:.0%} shared"),
        (
            "Staleness",
            f"≤ {records.staleness}",
            f"versions; the bound is {config.queue.max_staleness}",
        ),
    )
    for name, shown, note in figures:
        tile = add(tiles, "div", class_="card")
        add(tile, "dt", name)
        add(add(tile, "dd", shown), "small", note)


def _health(main: Element, records: Sequence[JsonObject], config: Config, local: bool) -> None:
    """List the alarms of the run. If there is no alarm, list what is idle and which option changes that."""
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
        add(row, "td", sentence(finding.what), class_="badge wrong" if wrong else "")
        add(row, "td", sentence(finding.remedy))


def _evaluations(main: Element, records: Sequence[JsonObject]) -> None:
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
    mean = [Series(label="mean of the sets", values=[value(r) for r in records])] if len(names) > 1 else []
    sets = [Series(label=n, values=[_of_set(r, n)["avg"]["value"] for r in records]) for n in names][
        : chart.SERIES_COLOURS - 1
    ]
    samples = _of_set(records[-1], names[0])["samples"]
    grid.append(
        chart.draw(Chart(title=f"avg@{samples}", unit="share of correct answers", series=[*mean, *sets]), steps)
    )
    lengths = [Series(label=n, values=[_of_set(r, n)["tokens_mean"] for r in records]) for n in names][
        : chart.SERIES_COLOURS
    ]
    grid.append(chart.draw(Chart(title="Length", unit="tokens of an answer", series=lengths), steps))
    body = table(main, ("Step", "Value", "95 % interval", "Cut", "Seconds"), numeric=range(5))
    for r in records:
        row, interval = add(body, "tr"), r["avg"]["interval"]
        shown = "" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"
        cut = max(s["cut"] for s in r["sets"].values())
        mark = " (best)" if r is found else ""
        for cell in (f"{r['step']}{mark}", f"{value(r):.3f}", shown, f"{cut:.0%}", f"{r['seconds']:.1f}"):
            add(row, "td", cell, class_="n")


def _of_set(record: JsonObject, name: str) -> JsonObject:
    found: JsonObject = record["sets"][name]
    return found


def _happenings(main: Element, folder: RunFolder, records: Digest) -> None:
    add(main, "h2", "What happened")
    card = add(main, "div", class_="card")
    body = table(card, ("Figure", "Value"))
    summary = folder.path / "summary.json"
    rows = _summary_rows(summary) if summary.is_file() else []
    if verdicts := records.verdicts:
        rows.append(("verdicts of the leaves trained", ", ".join(f"{name} {n:,}" for name, n in verdicts.items())))
    if dropped := records.last.get("dropped"):
        rows.append(("forests dropped", ", ".join(f"{reason} {n:,}" for reason, n in dropped.items())))
    rows.append(("checkpoints", ", ".join(f"step-{step}" for step in folder.checkpoints()) or "none"))
    for name, shown in rows:
        row = add(body, "tr")
        add(row, "th", name, scope="row")
        add(row, "td", shown)
    if not summary.is_file():
        add(card, "p", "The run has no summary.json: the run has not ended, or its driver was killed.", class_="soft")


def _summary_rows(path: Path) -> list[tuple[str, str]]:
    try:
        return list(summary_rows(json.loads(path.read_bytes())))
    except (*DAMAGED, OverflowError, ZeroDivisionError) as e:
        return [("summary.json", f"is damaged ({type(e).__name__}: {one_line(e)}); resume the run to write it again")]


def _forests(main: Element, folder: RunFolder, config: Config, records: Digest) -> None:
    """Draw an early and a late forest with different rewards. Without such a forest, write the reason."""
    add(main, "h2", "An early and a late forest")
    add(
        main,
        "p",
        "All rollouts of one prompt. Hover a token for its probability, entropy and policy version.",
        class_="soft",
    )
    spec, vocabulary = build_advantage(config.learner.preset, config.learner.advantage), run_vocabulary(folder, config)
    if isinstance(vocabulary, Numbers):
        add(main, "p", "The model's tokenizer is not at hand, so tokens are shown as numbers.", class_="soft")
    first, last = records.first_steps, records.last_steps
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
    """Return ((step, forest), "") for the first of `steps` that trained a forest with different rewards. Of several
    such forests of the step, the forest is the one with the most segments.

    If there is no such step, return (None, reason). The reason says why the last unreadable step could not be read; it
    is "" if every step could be read."""
    fault = ""
    for step in steps:
        try:
            forests = recorded.forests(step)
        except BadInput as e:  # the payloads of this step were deleted; those of another step may exist
            fault = f"{e}."
            continue
        mixed = [f for f in forests if len(set(f.reward[f.judged].tolist())) > 1]
        if mixed:
            return (step, max(mixed, key=lambda f: f.segments)), ""
    return None, fault


def _steps(main: Element, count: int, shown: Sequence[JsonObject]) -> None:
    keys = ["step", "elapsed_s", *(k for _, _, drawn in CHARTS for k in drawn if any(k in r for r in shown))]
    details = add(main, "details")
    of = f"All {count} steps" if len(shown) == count else f"{len(shown)} of {count} steps (all: metrics.jsonl)"
    add(details, "summary", f"{of} as a table")
    body = table(details, [k.replace("_", " ") for k in keys], numeric=range(len(keys)))
    for r in shown:
        row = add(body, "tr")
        for k in keys:
            add(row, "td", "" if r.get(k) is None else number(r[k]), class_="n")
