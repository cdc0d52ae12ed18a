"""Writes report.html of a run from the files in its folder: figures, curves, an early forest and a late forest."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from treeadv.report.digest import Digest, digest, evenly
from treeadv.report.markup import add
from treeadv.report.page import finish, forest_article, page, table
from treeadv.report.picture import Numbers, Vocabulary, picture
from treeadv.report.progress import clock, summary_rows
from treeadv.storage.disk import replace_file
from treeadv.storage.run_folder import RunFolder

MAX_SEARCHED = 30  # number of first and last steps that are searched for a forest with different rewards

# (title, unit, {key of a record: label}). "seconds" gives one curve for each phase.
CHARTS: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("Mean reward", "over the leaves trained", {"reward_mean": "reward"}),
    ("Sharing", "share of the flattened tokens not computed", {"sharing": "sharing"}),
    ("Staleness", "policy versions", {"staleness_mean": "mean", "staleness_max": "max"}),
    ("Decoding", "tokens/s", {"decode_tokens_per_s": "tokens/s"}),
    ("Prefix reuse", "share of prefix tokens found in the cache", {"prefix_reuse": "share"}),
    ("Entropy and fork threshold", "nats", {"entropy_mean": "mean entropy", "tau": "tau"}),
    ("Behaviour against learner", "KL (k3), nats", {"mismatch_kl": "KL"}),
    ("Gradient norm", "before clipping", {"grad_norm": "norm"}),
    ("Loss", "", {"loss": "loss"}),
    ("Corrected tokens", "share", {"clip_ratio": "clipped", "mask_ratio": "masked"}),
    ("Effective sample size", "share of the tokens", {"ess": "ESS"}),
    ("Forests without variance", "share: all leaves have the same reward", {"zero_variance": "share"}),
)
PHASES = ("Time of a step", "seconds by phase")


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
    _tiles(main, records, config)
    shown = evenly(folder, records.last["step"], records.last["step"])
    _curves(main, records, shown)
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


def _curves(main: Element, records: Digest, shown: Sequence[dict[str, Any]]) -> None:
    steps = [r["step"] for r in shown]
    add(main, "h2", "Curves")
    if len(shown) < records.count:
        add(main, "p", f"The curves show {len(shown)} of {records.count} steps, at even distances.", class_="soft")
    grid = add(main, "div", class_="charts")
    missing = []
    for title, unit, keys in CHARTS:
        known = {k: label for k, label in keys.items() if any(r.get(k) is not None for r in shown)}
        missing += [k for k in keys if k not in known]
        if known:
            series = [Series(label, [r.get(k) for r in shown]) for k, label in known.items()]
            grid.append(chart.draw(Chart(title, unit, series), steps))
    phases = _phases(records.seconds)
    series = [Series(p.replace("_", " "), [r.get("seconds", {}).get(p) for r in shown]) for p in phases]
    if series:
        grid.append(chart.draw(Chart(*PHASES, series), steps))
    if missing:
        add(main, "p", f"Not recorded by this run: {', '.join(missing)}.", class_="soft")


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


def _phases(total: Mapping[str, float]) -> list[str]:
    """Return the longest phases, at most one for each colour of the chart, without phases below 1 % of the time."""
    longest = sorted(total, key=lambda p: -total[p])[: chart.SERIES_COLOURS]
    return [p for p in longest if total[p] >= 0.01 * total[longest[0]]]


def _happenings(main: Element, folder: RunFolder, records: Digest) -> None:
    add(main, "h2", "What happened")
    card = add(main, "div", class_="card")
    body = table(card, ("Figure", "Value"))
    summary = folder.path / "summary.json"
    rows = list(summary_rows(json.loads(summary.read_text()))) if summary.is_file() else []
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


def _forests(main: Element, folder: RunFolder, config: Config, records: Digest) -> None:
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


def _steps(main: Element, count: int, shown: Sequence[dict[str, Any]]) -> None:
    keys = ["step", "elapsed_s", *(k for _, _, drawn in CHARTS for k in drawn if any(k in r for r in shown))]
    details = add(main, "details")
    of = f"All {count} steps" if len(shown) == count else f"{len(shown)} of {count} steps (all: metrics.jsonl)"
    add(details, "summary", f"{of} as a table")
    body = table(details, [k.replace("_", " ") for k in keys], numeric=range(len(keys)))
    for r in shown:
        row = add(body, "tr")
        for k in keys:
            add(row, "td", "" if r.get(k) is None else number(r[k]), class_="n")
