"""Writes the report of a study: report.html, report.md and cells.json, from the results of the cells."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from treeadv.disk import make_folder, replace_file
from treeadv.errors import BadInput
from treeadv.jsonl import JsonObject
from treeadv.report.markup import add
from treeadv.report.page import finish, page, table
from treeadv.report.progress import clock
from treeadv.study.analysis import ComparisonResult, RowSummary, common_tokens, compare, read_cells, summarise
from treeadv.study.curves import STYLE, band, draw
from treeadv.study.results import Result, read_sessions
from treeadv.study.spec import Study, load_study

ROW_HEADS = (
    "row", "seeds", "test accuracy", "dev accuracy", "dev at equal tokens", "tokens generated", "tokens to target",
    "sharing", "mixed outcomes", "answer tokens", "wall time",
)  # fmt: skip
CLAIM_HEADS = (
    "claim", "metric", "arm", "against", "difference", "95 % interval", "pairs", "p (t)", "p (Wilcoxon)", "p (Holm)",
    "verdict",
)  # fmt: skip
_ABSOLUTE = re.compile(r"(?<![^\s'\"=,(])/(?:[^\s'\"/]+/)*([^\s'\"/]+)/?")
CURVES = (("accuracy", "accuracy on the development problems"), ("tokens_mean", "tokens of an answer"))


def write_reports(home: Path, out: Path) -> list[Path]:
    """Write the files of the report into `out`. Returns their paths. Raises `BadInput` if `home` has no study."""
    if not (home / "study.yaml").is_file():
        raise BadInput(f"{home}: not the folder of a study (no study.yaml); treeadv study run makes one")
    study = load_study(home / "study.yaml")
    cells = without_folders(read_cells(study, home))
    sessions = without_folders(read_sessions(home))
    rows, outcomes = summarise(study, cells), compare(study, cells)
    make_folder(out)
    written = {
        "report.html": _page(study, cells, rows, outcomes, sessions),
        "report.md": _markdown(study, cells, rows, outcomes, sessions),
        "cells.json": json.dumps({"sessions": sessions, "cells": list(cells.values())}) + "\n",
    }
    if out.resolve() != home.resolve():
        written["study.yaml"] = (home / "study.yaml").read_text()
    for name, text in written.items():
        replace_file(out / name, text.encode(errors="backslashreplace"))  # a name may hold half of a surrogate pair
    return [out / name for name in written]


def without_folders(value: Any) -> Any:
    """Return a JSON value in which each absolute path of a text is its last name. Addresses with a scheme stay.

    A report is published, and the folders of a machine mean nothing elsewhere.

    >>> without_folders({"command": "study run a.yaml --dir /data/studies/a", "data": "s3://bucket/x", "row": "a/b"})
    {'command': 'study run a.yaml --dir a', 'data': 's3://bucket/x', 'row': 'a/b'}
    >>> without_folders({"/data/problems/train.jsonl": "the hash of a file"})
    {'train.jsonl': 'the hash of a file'}
    """
    if isinstance(value, str):
        return _ABSOLUTE.sub(r"\1", value)
    if isinstance(value, dict):
        return {without_folders(key): without_folders(x) for key, x in value.items()}
    return [without_folders(x) for x in value] if isinstance(value, list) else value


def row_cells(study: Study, row: RowSummary) -> list[str]:
    """Return the cells of one line of the table of rows."""
    f, total = row.figures, len(study.seeds)
    seeds = f"{row.done} of {total}" + (f", {row.failed} failed" if row.failed else "")
    reach = f"{_count(row.tokens_to_target)} ({row.reached} of {row.done})" if row.done else "-"
    return [
        row.name, seeds, _pm(f["test_accuracy"]), _pm(f["dev_accuracy"]), _pm(f["dev_accuracy_at_tokens"]),
        _count(f["tokens_generated"][0]), reach, _share(f["sharing"][0]), _share(f["mixed_outcomes"][0]),
        _plain(f["answer_tokens"][0], 1), "-" if math.isnan(f["seconds"][0]) else clock(f["seconds"][0]),
    ]  # fmt: skip


def claim_cells(o: ComparisonResult) -> list[str]:
    """Return the cells of one line of the table of claims."""
    digits = 0 if o.comparison.metric in ("tokens_generated", "tokens_to_target") else 4
    low, high = (_plain(x, digits) for x in o.interval)
    return [
        o.comparison.claim, o.comparison.metric, f"{o.comparison.arm}: {_plain(o.arm_mean, digits)}",
        f"{o.comparison.against}: {_plain(o.against_mean, digits)}",
        f"{_plain(o.difference, digits)} +- {_plain(o.spread, digits)}", f"[{low}, {high}]",
        f"{o.pairs} of {o.seeds}" + (f"; {o.note}" if o.note else ""),
        _plain(o.p_t, 4), _plain(o.p_wilcoxon, 4), _plain(o.p_holm, 4), o.verdict,
    ]  # fmt: skip


def explanation(study: Study, cells: dict[tuple[str, int], Result]) -> list[str]:
    """Return the sentences that explain the tables."""
    budget = f"{study.budget.steps} steps" if study.budget.steps else f"{study.budget.tokens} generated tokens"
    at, a, dev = common_tokens(list(cells.values())), study.analysis, study.development
    return [
        f"Every run has {budget}; figures are mean +- standard deviation over seeds.",
        f"Test accuracy is of {study.test.problems} problems x {study.test.samples} samples, looked at once, at the"
        f" end; dev accuracy is of {dev.problems} x {dev.samples}, every {study.look_every} steps.",
        f"Dev at equal tokens is read from each curve at {_count(at)} generated tokens, the fewest that a finished run"
        " has; a comparison reads it at the fewer tokens of its pair.",
        "Tokens to target is the median of the generated tokens at which the dev curve first reaches"
        f" {a.target_accuracy:g}; in brackets how many seeds reach it. A row of which half never reach it says never.",
        f"Claims: {a.test.replace('_', ' ')} on differences by seed, Holm over all {len(a.comparisons)} comparisons,"
        f" alpha {a.alpha:g}; the interval is a percentile bootstrap of the mean difference.",
    ]


def gaps(cells: dict[tuple[str, int], Result]) -> list[str]:
    """Return a line for each cell that has no result."""
    return [
        f"{c['row']}, seed {c['seed']}: {c['status']}: {c['reason']}" for c in cells.values() if c["status"] != "done"
    ]


def _markdown(
    study: Study, cells: dict[tuple[str, int], Result], rows: Sequence[RowSummary],
    outcomes: Sequence[ComparisonResult], sessions: Sequence[JsonObject],
) -> str:  # fmt: skip
    parts = [
        f"# Study {study.name}",
        study.question,
        "## Rows",
        _md(ROW_HEADS, [row_cells(study, r) for r in rows]),
    ]
    parts += [
        "## Claims",
        _md(CLAIM_HEADS, [claim_cells(o) for o in outcomes]),
        "\n".join(f"- {s}" for s in explanation(study, cells)),
    ]
    if missing := gaps(cells):
        parts += ["## Cells without a result", "\n".join(f"- {line}" for line in missing)]
    runs = "\n".join(f"- {s['date']}: `{s['command']}` on {s['cores']} cores of {s['cpu']}" for s in sessions)
    return "\n\n".join([*parts, "## Runs", runs]) + "\n"


def _md(heads: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _page(
    study: Study, cells: dict[tuple[str, int], Result], rows: Sequence[RowSummary],
    outcomes: Sequence[ComparisonResult], sessions: Sequence[JsonObject],
) -> str:  # fmt: skip
    root, main = page(f"treeadv study {study.name}")
    add(main, "style", STYLE)
    add(main, "h1", f"Study {study.name}")
    add(main, "p", study.question)
    add(main, "h2", "Claims")
    _fill(table(main, CLAIM_HEADS, numeric=(7, 8, 9)), [claim_cells(o) for o in outcomes])
    add(main, "h2", "Rows")
    _fill(table(main, ROW_HEADS, numeric=range(2, len(ROW_HEADS))), [row_cells(study, r) for r in rows])
    for line in explanation(study, cells):
        add(main, "p", line, class_="soft")
    add(main, "h2", "Curves")
    for key, unit in CURVES:
        found = [band(name, [cells[name, s] for s in study.seeds], key) for name in study.rows]
        bands = [b for b in found if b is not None]
        if bands:
            main.append(draw(bands, unit))
    if missing := gaps(cells):
        add(main, "h2", "Cells without a result")
        for line in missing:
            add(main, "p", line)
    add(main, "h2", "Every cell")
    body = table(
        main, ("row", "seed", "test accuracy", "dev accuracy at each look", "tokens", "wall time"), numeric=(1, 2, 4)
    )
    _fill(body, [_cell_cells(c) for c in cells.values()])
    add(main, "h2", "Runs")
    for s in sessions:
        add(main, "p", f"{s['date']}: {s['command']}, {s['cores']} cores of {s['cpu']}, Python {s['python']}")
    return finish(root)


def _cell_cells(c: Result) -> list[str]:
    if c["status"] != "done":
        return [c["row"], str(c["seed"]), c["status"], c["reason"], "", ""]
    looks = " ".join(f"{x['accuracy']:.3f}" for x in c["looks"])
    tokens = _count(c["series"]["tokens_generated"][-1])
    return [c["row"], str(c["seed"]), f"{c['test']['accuracy']:.4f}", looks, tokens, clock(c["seconds"])]


def _fill(body: Element, rows: Sequence[Sequence[str]]) -> None:
    for cells in rows:
        row = add(body, "tr")
        for text in cells:
            add(row, "td", text)


def _pm(value: tuple[float, float]) -> str:
    return f"{_plain(value[0], 3)} +- {_plain(value[1], 3)}"


def _plain(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:,.{digits}f}"


def _count(value: float) -> str:
    return "never" if math.isinf(value) else _plain(value, 0)


def _share(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1%}"
