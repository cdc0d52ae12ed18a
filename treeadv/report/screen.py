"""Draws a run for the terminal: the screen of `treeadv watch`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType
from rich.layout import Layout
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from treeadv.evaluation.history import best, value
from treeadv.jsonl import JsonMapping
from treeadv.report.chart import number
from treeadv.report.health import advice, alarms
from treeadv.report.page import leaf_texts
from treeadv.report.picture import Picture, signed
from treeadv.report.progress import STATES, clock, spark, time_left
from treeadv.report.run_view import RunView, actor_counts
from treeadv.visible import visible

WIDE = 110  # smallest number of columns for facts and curves side by side
_SPARKS = 48
_STYLE = {"running": "bold green", "finished": "bold cyan", "stopped": "bold yellow"}
_CURVES = {
    "reward": "reward_mean",
    "mixed outcomes": "mixed",
    "answer tokens": "answer_tokens",
    "cut at the limit": "truncated",
    "sharing": "sharing",
    "entropy": "entropy_mean",
}


def screen(view: RunView, width: int) -> Layout:
    """Return the screen of a terminal with `width` columns. What does not fit is cut at the end of its panel."""
    layout = Layout()
    facts, curves = Panel(facts_table(view), title="run"), Panel(curves_table(view), title="steps")
    forest = Layout(Panel(forest_text(view), title="the forest that was admitted last"), name="forest", ratio=3)
    top = Layout(name="top", ratio=3, minimum_size=12)
    if width >= WIDE:
        top.split_row(Layout(facts), Layout(curves))
    else:
        top.split_column(Layout(facts), Layout(curves))
    notes = Layout(Panel(findings(view), title="health"), size=5)
    layout.split_column(Layout(header(view), size=2), top, notes, forest)
    return layout


def summary(view: RunView) -> RenderableType:
    """Return the content of the screen as text of any height, for an output that is not a terminal."""
    return Group(header(view), facts_table(view), curves_table(view), findings(view), Text(""), forest_text(view))


def header(view: RunView) -> RenderableType:
    step, total = view.last.get("step", 0), view.config.run.steps
    bar = Table.grid(padding=(0, 2))
    left = time_left(list(view.records), total) if view.records else "after the next step"
    bar.add_row(
        Text(visible(view.path.name), style="bold"), Text(view.state, style=_STYLE[view.state]),
        Text(f"step {step}/{total}"), ProgressBar(total, step, width=30),
        Text(f"ETA {left}" if view.state == "running" else ""),
    )  # fmt: skip
    return Group(bar, Text(_explained(view), style="dim"))


def facts_table(view: RunView) -> RenderableType:
    """Return a table of the roles, the conservation law of the queue, the throughput and the staleness."""
    r, table = view.last, Table.grid(padding=(0, 2))
    for name, text in (*_roles(view), *_law(r)):
        table.add_row(Text(name, style="dim"), Text(text))
    if r:
        table.add_row(Text("tokens/s", style="dim"), Text(_throughput(view.records)))
        bound = view.config.queue.max_staleness
        shown = f"mean {r['staleness_mean']:.1f}, max {r['staleness_max']} versions; the bound is {bound}"
        table.add_row(Text("staleness", style="dim"), Text(shown))
        table.add_row(Text("states", style="dim"), Text(STATES, style="dim"))
    return table


def curves_table(view: RunView) -> RenderableType:
    """Return a table of the figures of the last steps, the counts of verdicts, and the evaluations. A figure is a line
    of block characters with its last value."""
    table = Table.grid(padding=(0, 2))
    for name, key in _CURVES.items():
        values = [r[key] for r in view.records if r.get(key) is not None][-_SPARKS:]
        if values:
            table.add_row(Text(name, style="dim"), Text(number(values[-1])), Text(spark(values), style="green"))
    if verdicts := view.last.get("verdicts"):
        table.add_row(Text("verdicts", style="dim"), Text(""), Text(_counts(verdicts)))
    if found := best(view.evaluations):
        last = view.evaluations[-1]
        text = f"{value(last):.3f} at step {last['step']}, best {value(found):.3f} at step {found['step']}"
        table.add_row(Text("evaluation", style="dim"), Text(""), Text(text))
    return table


def findings(view: RunView) -> RenderableType:
    """Return the alarms. If there is no alarm, return the advice. Also return the faults of files that cannot be
    read."""
    records = list(view.records)
    wrong = alarms(records)
    shown = [Text(visible(f"! {f.text}"), style="bold red") for f in wrong]
    if not wrong:
        shown = [Text(visible(f"- {f.text}"), style="yellow") for f in advice(records, view.config, view.local)]
    if view.fault:
        shown.insert(0, Text(visible(f"! {view.fault}"), style="bold red"))
    return Group(*shown) if shown else Text("no alarm", style="green" if records else "dim")


def forest_text(view: RunView) -> RenderableType:
    """Return the prompt, the gold answer, and each answer with its verdict, advantage and text."""
    if view.forest is None:
        return Text("no forest yet", style="dim")
    p = view.forest
    facts = Text(visible(p.summary()), style="dim")
    prompt = Text("prompt ", style="dim").append(p.prompt.replace("⏎\n", "⏎ ").strip(), style="not dim")
    gold = Text("gold answer ", style="dim").append(visible(p.forest.gold), style="not dim bold")
    return Group(facts, prompt, *([gold] if p.forest.gold else []), _leaves(p))


def _leaves(p: Picture) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("verdict", "advantage", "tokens", "answer"):
        table.add_column(name, header_style="dim", justify="right" if name in ("advantage", "tokens") else "left")
    for (leaf, s), (tokens, text) in zip(enumerate(p.forest.leaf_segment), leaf_texts(p), strict=True):
        advantage = "" if p.advantage is None else signed(p.advantage[s])
        shown = Text(" ".join(visible(text).split()))
        table.add_row(Text(p.leaf_note(leaf)), advantage, str(tokens), shown)
    return table


def _explained(view: RunView) -> str:
    """Return what the state of the run means, and the command that continues the run."""
    run = visible(shlex.quote(str(view.path)))
    local = "--local " * view.local
    if view.state == "running":
        return "" if view.records else "the roles load the model; no step yet"
    if view.state == "finished":
        return f"ended after {clock(view.last['elapsed_s'])}; curves and trees: treeadv report {run}"
    if view.ended:
        return f"stopped before its last step; go on: treeadv train {local}--resume {run}"
    return f"the driver was killed, or runs on another machine; go on: treeadv train {local}--resume {run}"


def _roles(view: RunView) -> list[tuple[str, str]]:
    if view.local or not view.actors:
        what = "one process (--local)" if view.local else "Ray actors"
        return [("roles", what if view.state == "running" else f"none; the run had {what}")]
    return [
        (role, f"{view.actors[role]} of {n} up{_doing(role, view)}") for role, n in actor_counts(view.config).items()
    ]


def _doing(role: str, view: RunView) -> str:
    """Return what a role did in the last step."""
    records = list(view.records)[-2:]
    if len(records) < 2:
        return ""
    last = records[-1]
    seconds = max(1e-9, last["elapsed_s"] - records[0]["elapsed_s"])
    if role == "learner":
        return f", waits {min(1.0, last['seconds'].get('wait', 0.0) / seconds):.0%} of a step of {seconds:.1f} s"
    if role == "generator":
        busy = last["generator_busy_s"] / seconds / max(1, view.actors[role])
        return f", decodes {min(1.0, busy):.0%} of the time"
    return f", {last['admitted']} forests admitted" if role == "queue" and "admitted" in last else ""


def _law(r: JsonMapping) -> list[tuple[str, str]]:
    if not r:
        return []
    states = r["forests"]
    rows = [(f"forests, step {r['step']}", _counts(states))]
    if "admitted" in r:
        parts = " + ".join(f"{name} {states.get(name, 0)}" for name in ("ready", "leased", "trained", "dropped"))
        holds = "holds" if not r["law_error"] else f"has an error of {r['law_error']}"
        rows.append(("law", f"admitted {r['admitted']} = {parts}: {holds}"))
    if lost := {name: n for name, n in r.get("dropped", {}).items() if n}:
        rows.append(("dropped", _counts(lost)))
    return rows


def _throughput(records: Sequence[JsonMapping]) -> str:
    last, before = records[-1], records[max(-11, -len(records))]
    seconds = last["elapsed_s"] - before["elapsed_s"]
    trained = (last["tokens_trained"] - before["tokens_trained"]) / seconds if seconds > 0 else 0.0
    return f"{number(last['decode_tokens_per_s'])} drawn, {number(trained)} trained; {last['sharing']:.0%} shared"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{visible(name)} {n}" for name, n in counts.items())
