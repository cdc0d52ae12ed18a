"""Writes docs/metrics.md from the table of metrics and the table of the fields of metrics.jsonl.

python -m monitoring.reference      # `make generate` runs it, and a test compares the result
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from treeadv.command_line import run_command, tool_parser
from treeadv.metrics import TABLE, Metric
from treeadv.storage.record_fields import FIELDS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "metrics.md"
HEAD = """# Metrics

`make generate` writes this page from `treeadv/metrics.py` and `treeadv/storage/record_fields.py`; do not edit it. Each
role serves its metrics on `/metrics` and its health on `/healthz` (200, or 503 with the reason). Prometheus adds the
labels `run` and `instance`, which it reads from `targets.json` of the run or from the PodMonitor of the chart. The last
section has the fields of `metrics.jsonl`.
"""
RECORDS = """## metrics.jsonl: one record a step

A run with Ray and a run with `--local` write one line of JSON a step into `RUN/metrics.jsonl`, with the same fields. A
resumed run continues the totals. `run.trackers` get every number, with the names of this table; numbers of an object
are named `field/key`. Shares are from 0 to 1.
"""
ROLES = {
    "driver": "Driver: the run as a whole",
    "generator": "Generators",
    "reward": "Reward actors",
    "queue": "Replay queue",
    "learner": "Learners",
}


def page() -> str:
    """Return the page as Markdown."""
    sections = [HEAD]
    for role, title in ROLES.items():
        rows = [_row(m) for m in TABLE if m.role == role]
        head = [f"## {title}\n", "| metric | type | unit | labels | meaning |", "| --- | --- | --- | --- | --- |"]
        sections.append("\n".join([*head, *rows]) + "\n")
    return "\n".join([*sections, _records()])


def _records() -> str:
    """Return the section about metrics.jsonl."""
    rows = [f"| `{f.name}` | {f.kind} | {f.unit} | {f.meaning}. |" for f in FIELDS]
    return "\n".join([RECORDS, "| field | type | unit | meaning |", "| --- | --- | --- | --- |", *rows]) + "\n"


def _row(m: Metric) -> str:
    buckets = f" Buckets: {', '.join(f'{b:g}' for b in m.buckets)}." if m.buckets else ""
    return f"| `{m.name}` | {m.kind} | {m.measures} | {', '.join(m.labels)} | {m.help}.{buckets} |"


def main(argv: Sequence[str] | None = None) -> None:
    tool_parser("python -m monitoring.reference", __doc__).parse_args(argv)
    PAGE.write_text(page())


if __name__ == "__main__":
    sys.exit(run_command(main))
