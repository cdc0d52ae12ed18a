"""Write docs/metrics.md from the table of metrics.

python -m monitoring.reference      # `make generate` runs it, and a test compares the result
"""

from __future__ import annotations

from pathlib import Path

from treeadv.metrics import TABLE, Metric

PAGE = Path(__file__).resolve().parents[1] / "docs" / "metrics.md"
HEAD = """# Metrics

`make generate` writes this page from `treeadv/metrics.py`; do not edit it. Each role serves its metrics on `/metrics`
and its health on `/healthz` (200, or 503 with the reason). Prometheus adds the labels `run` and `instance`, which it
reads from `targets.json` of the run or from the PodMonitor of the chart.
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
        head = [f"## {title}\n", "| metric | type | labels | meaning |", "| --- | --- | --- | --- |"]
        sections.append("\n".join([*head, *rows]) + "\n")
    return "\n".join(sections)


def _row(m: Metric) -> str:
    buckets = f" Buckets: {', '.join(f'{b:g}' for b in m.buckets)}." if m.buckets else ""
    return f"| `{m.name}` | {m.kind} | {', '.join(m.labels)} | {m.help}.{buckets} |"


if __name__ == "__main__":
    PAGE.write_text(page())
