"""The display of `treeadv train` during and at the end of a run. Times come from the records, not from a clock."""

from __future__ import annotations

import math
import shlex
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from treeadv.config import Config
from treeadv.jsonl import JsonMapping, JsonObject
from treeadv.report.chart import number
from treeadv.tracking import Trackers
from treeadv.visible import visible

_BARS = "▁▂▃▄▅▆▇█"
_SHOWN = 48  # number of last steps whose rewards are shown
_WINDOW = 10  # number of last steps whose pace gives the ETA
STATES = (
    "reserved: a slot is given; ready: graded, waits; leased: in a step that no checkpoint holds yet; trained: its step"
    " is in a checkpoint"
)


class Progress:
    """A display of a run, and a context manager. On a terminal it is live; elsewhere it is one plain line for each
    step.

    Call `update` with every record. The display also passes each record to the trackers of the run."""

    def __init__(self, total_steps: int, console: Console, trackers: Trackers | None = None) -> None:
        self._total = total_steps
        self._trackers = trackers
        self._console = console
        self._records: deque[JsonObject] = deque(maxlen=_SHOWN)  # bounded, so that the memory stays constant
        self._evaluated = ""
        self._best: tuple[float, int] | None = None  # value and step of the best evaluation shown
        self._said = f"starting a run of {total_steps} steps"
        self._live = Live(self._starting(), console=console, refresh_per_second=4) if console.is_terminal else None

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        else:
            self._console.print(self._starting())
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def update(self, record: JsonObject) -> None:
        """Show one step. `record` is a line of metrics.jsonl."""
        self._records.append(record)
        if self._trackers:
            self._trackers.log(record)
        if self._live:
            self._live.update(self._display())
        else:
            cells = [
                f"step {record['step']}/{self._total}",
                *(f"{k} {v}" for k, v in self._facts()),
                f"ETA {time_left(list(self._records), self._total)}",
            ]
            if len(self._records) == 1:
                self._console.print(f"forests: {STATES}", highlight=False, soft_wrap=True)
            self._console.print("  ".join(cells), highlight=False, soft_wrap=True)

    def show_evaluation(self, record: JsonMapping) -> None:
        """Show one evaluation: a line of evaluations.jsonl."""
        if self._trackers:
            self._trackers.log(record, "evaluation/")
        value = float(record["avg"]["value"])
        if self._best is None or value > self._best[0]:
            self._best = (value, record["step"])
        self._evaluated = f"{value:.3f} at step {record['step']}, best {self._best[0]:.3f} at step {self._best[1]}"
        if not self._live:
            self._console.print(f"evaluation {self._evaluated}", highlight=False, soft_wrap=True)
        elif self._records:
            self._live.update(self._display())

    def say(self, what: str) -> None:
        """Print what the run does before its first step. After the first step, the figures of the steps take the place
        of this text."""
        self._said = what
        if not self._live:
            self._console.print(self._starting(), soft_wrap=True)
        elif not self._records:
            self._live.update(self._starting())

    def _starting(self) -> Text:
        return Text(visible(self._said), style="dim")

    def _display(self) -> RenderableType:
        record = self._records[-1]
        bar = Table.grid(padding=(0, 2))
        bar.add_row(
            Text(f"step {record['step']}/{self._total}", style="bold"),
            ProgressBar(self._total, record["step"], width=40), f"ETA {time_left(list(self._records), self._total)}",
        )  # fmt: skip
        facts = Table.grid(padding=(0, 2))
        for name, value in self._facts():
            facts.add_row(Text(name, style="dim"), value)
        rewards = [r["reward_mean"] for r in self._records]
        facts.add_row(Text(f"reward of {len(rewards)} steps", style="dim"), Text(spark(rewards), style="green"))
        return Group(bar, facts, Text(STATES, style="dim"))

    def _facts(self) -> list[tuple[str, str]]:
        r = self._records[-1]
        return [
            ("reward", f"{r['reward_mean']:.2f}"),
            *([("evaluation", self._evaluated)] if self._live and self._evaluated else []),
            ("forests", " ".join(f"{state} {n}" for state, n in r["forests"].items())),
            ("tokens/s", number(r["decode_tokens_per_s"])),
            ("shared", f"{r['sharing']:.0%}"),
            ("staleness", f"{r['staleness_mean']:.1f} (max {r['staleness_max']})"),
        ]


def first_forests(config: Config, step: int) -> str:
    """Return a text about what the run does from now to the end of step `step` + 1."""
    sampling, count = config.sampling, config.learner.forests_per_step
    begun = f"going on from step {step}" if step else "everything is loaded"
    return (
        f"{begun}; growing {count} forests of {sampling.leaves} leaves, at most {sampling.max_tokens} tokens each, for"
        f" step {step + 1} of {config.run.steps}"
    )


def time_left(records: Sequence[JsonMapping], total: int) -> str:
    """Return the remaining time at the pace of the last of these records, which must not be empty.

    The first step after a start does not count, because it includes the start-up."""
    recent = records[-_WINDOW - 1 :]
    if len(recent) < 2:
        return "after the next step" if records[-1]["step"] < total else "0:00"
    pace = (recent[-1]["elapsed_s"] - recent[0]["elapsed_s"]) / (len(recent) - 1)
    return clock(pace * (total - recent[-1]["step"]))


def final_table(summary: JsonObject, console: Console) -> None:
    """Print the figures of a run that has finished or stopped. `summary` is the content of summary.json."""
    if not summary["steps"]:
        console.print("No step was completed.")
        return
    table = Table(
        title=f"{summary['steps']} steps in {clock(summary['elapsed_s'])}", title_justify="left", show_header=False
    )
    for name, value in summary_rows(summary):
        table.add_row(name, Text(visible(value)))
    console.print(table)
    run = visible(shlex.quote(summary["run"]))
    for name, text in (
        ("Run folder", visible(summary["run"])),
        ("Report", visible(str(Path(summary["run"]) / "report.html"))),
        ("Every forest in the browser", f"treeadv view {run}"),
        ("Last step on the screen", f"treeadv watch {run}"),
        ("Check of its forests", f"treeadv audit {run}"),
        ("Beside another run", f"treeadv compare {run} OTHER_RUN --html compare.html"),
    ):
        console.print(Text(f"{name}: {text}"), soft_wrap=True)


def summary_rows(s: JsonObject) -> list[tuple[str, str]]:
    """Return the rows (name, value) of the final table and of the report."""
    factor = s["tokens_expanded"] / s["tokens_trained"]
    expanded = f"{s['tokens_expanded']:,.0f} (x {factor:.2f}, {s['sharing_trained']:.0%} shared)"
    found = s.get("evaluation_best")
    return [
        *([("best evaluation", f"{found['value']:.3f} at step {found['step']}")] if found else []),
        ("mean reward, first fifth of the steps", f"{s['reward_first_fifth']:.3f}"),
        ("mean reward, last fifth of the steps", f"{s['reward_last_fifth']:.3f}"),
        (
            "tokens generated",
            f"{s['tokens_generated']:,.0f} ({s['prefix_reuse']:.0%} of the prefix tokens came from the cache)",
        ),
        ("tokens trained", f"{s['tokens_trained']:,.0f} instead of {expanded}"),
        ("staleness, in policy versions", f"mean {s['staleness_mean']:.2f}, max {s['staleness_max']}"),
        ("forests", ", ".join(f"{state} {n}" for state, n in s["forests"].items())),
        *((f"time, {role.replace('_', ' ')}", clock(seconds)) for role, seconds in s["seconds"].items()),
    ]


def spark(values: Sequence[float], width: int = _SHOWN) -> str:
    """Return a line of block characters for a series, scaled from its least to its largest value.

    A series with more than `width` values is thinned. A value that is not finite has no character."""
    values = [v for v in values if math.isfinite(v)]
    if not values:
        return ""
    n = min(width, len(values))
    shown = [values[i * len(values) // n] for i in range(n - 1)] + [values[-1]]
    low, high = min(shown), max(shown)
    span = high - low or 1.0
    return "".join(_BARS[int((v - low) / span * (len(_BARS) - 1))] for v in shown)


def clock(seconds: float) -> str:
    """Format a duration as m:ss or h:mm:ss."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"
