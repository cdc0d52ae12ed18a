"""Write docs/metrics.md from the table of metrics.

    python -m monitoring.reference      # CI runs it and compares
"""

from __future__ import annotations

from pathlib import Path

from treeadv.metrics import TABLE, Metric

PAGE = Path(__file__).resolve().parents[1] / "docs" / "metrics.md"
HEAD = """# Metrics

Made from `treeadv/metrics.py` by `python -m monitoring.reference`; do not edit. Each role serves its own on `/metrics` beside `/healthz`
(200, or 503 with the reason). `run` and `instance` come from where it is scraped: the run's `targets.json`, or the chart's PodMonitor.
"""
ROLES = {
    "driver": "Driver: the run as a whole",
    "generator": "Generators",
    "reward": "Reward actors",
    "queue": "Replay queue",
    "learner": "Learners",
}


def page() -> str:
    sections = [HEAD]
    for role, title in ROLES.items():
        rows = [_row(m) for m in TABLE if m.role == role]
        sections.append("\n".join([f"## {title}\n", "| metric | type | labels | meaning |", "| --- | --- | --- | --- |", *rows]) + "\n")
    return "\n".join(sections)


def _row(m: Metric) -> str:
    buckets = f" Buckets: {', '.join(f'{b:g}' for b in m.buckets)}." if m.buckets else ""
    return f"| `{m.name}` | {m.kind} | {', '.join(m.labels)} | {m.help}.{buckets} |"


if __name__ == "__main__":
    PAGE.write_text(page())
