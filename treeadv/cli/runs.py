"""The commands `treeadv audit`, `report`, `runs` and `compare`, which read the files of runs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from treeadv.cli.files import check_target, replaced
from treeadv.cli.parser import Commands, add_command
from treeadv.command_line import local, output, readable
from treeadv.places import is_uri
from treeadv.visible import visible


def add(commands: Commands) -> None:
    p = add_command(commands, "audit", audit, "check that a run lost no forest and trained none twice")
    p.add_argument("run_dir", metavar="RUN")
    p.add_argument("--json", action="store_true", help="print JSON")

    p = add_command(commands, "report", report, "write report.html into a run folder")
    p.add_argument("run_dir", type=readable, metavar="RUN", help="a folder, or the URI of a run in an object store")

    p = add_command(commands, "runs", runs, "list the runs of a folder")
    p.add_argument("root", type=local, nargs="?", default=Path("runs"), metavar="FOLDER", help="default: runs")

    p = add_command(commands, "compare", compare, "show runs side by side: configurations, figures, curves")
    p.add_argument("run_dirs", type=local, nargs="+", metavar="RUN")
    p.add_argument("--html", type=output, metavar="FILE.html", help="write a page with the curves too")


def audit(args: argparse.Namespace) -> int:
    from treeadv.replay.audit import audit as audit_run

    result = audit_run(args.run_dir)
    print(json.dumps(result.to_dict(), indent=2) if args.json else visible(result.table(), newline="\n"))
    return 0 if result.sound else 1


def report(args: argparse.Namespace) -> int:
    from treeadv.report.run import write_report
    from treeadv.storage.run_folder import opened_run
    from treeadv.storage.run_store import object_store

    with opened_run(args.run_dir) as folder:
        written = str(path := write_report(folder))
        if is_uri(str(args.run_dir)):
            object_store(args.run_dir, folder).keep(path)
            written = f"report.html in {args.run_dir}"
        print(visible(written))
    return 0


def runs(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from treeadv.report.overview import runs_in

    found = runs_in(args.root)
    if not found:
        print(visible(f"no runs in {args.root}"))
        return 0
    made = Table("run", "state", "steps", "reward", "preset", "model", "started", box=None, pad_edge=False)
    for run in found:
        config, reward = run.config, run.reward()
        cells = (
            run.path.name,
            run.state,
            f"{run.steps} of {config.run.steps}" if config else "",
            "-" if reward is None else f"{reward:.3f}",
            config.learner.preset if config else "",
            Path(config.model.path).name if config else "",
            f"{run.started:%Y-%m-%d %H:%M}",
        )
        made.add_row(*(Text(visible(cell)) for cell in cells))
    console = Console()
    console.print(made)
    for run in found:
        if run.fault:
            console.print(Text(visible(run.fault)))
    return 0


def compare(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from treeadv.report.overview import comparison_page, differences, figure_rows, read_run

    if args.html:
        check_target(args.html)
    found = [read_run(path) for path in args.run_dirs]
    console = Console()
    for title, rows in (("figure", figure_rows(found)), ("configuration", differences(found))):
        made = Table(box=None, pad_edge=False)
        for text in (title, *(run.path.name for run in found)):
            made.add_column(Text(visible(text)))
        for row in rows:
            made.add_row(*(Text(visible(cell)) for cell in (row[0], *row[1])))
        console.print(made)
        console.print()
    if args.html:
        with replaced(args.html) as scratch:
            scratch.write_text(comparison_page(found), encoding="utf-8")
    return 0
