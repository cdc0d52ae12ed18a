"""The command `treeadv study`, which runs a grid of local runs at equal budgets and writes its report."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

from treeadv.cli.parser import Commands, add_command
from treeadv.command_line import local, output, positive


def add(commands: Commands) -> None:
    study = commands.add_parser("study", help="run a grid of local runs at equal budgets, and report on it")
    actions = study.add_subparsers(title="commands", metavar="COMMAND", required=True)

    p = add_command(actions, "run", run, "run what is left of a study")
    p.add_argument("file", type=local, metavar="STUDY.yaml")
    p.add_argument("--dir", type=local, metavar="DIR", help="folder of the study (default studies/NAME)")
    p.add_argument("--jobs", type=positive, metavar="N", help="cells at a time (default: one a core)")
    p.add_argument("--models", type=local, default=Path("models"), metavar="DIR", help="folder of warm models")

    p.add_argument("--retry", action="store_true", help="run the cells again that failed")

    p = add_command(actions, "report", report, "write report.html, report.md and cells.json of a study")
    p.add_argument("dir", type=local, metavar="DIR")
    p.add_argument("--out", type=output, metavar="DIR", help="where to write (default: the folder of the study)")


def run(args: argparse.Namespace) -> int:
    from treeadv.study.running import run_study
    from treeadv.study.spec import load_study

    home = args.dir or Path("studies") / load_study(args.file).name
    command = shlex.join(["treeadv", *sys.argv[1:]])
    failed = run_study(args.file, home, args.jobs or os.cpu_count() or 1, args.models, args.retry, command)
    print(f"{home}: treeadv study report {shlex.quote(str(home))} writes the report")
    return 1 if failed else 0


def report(args: argparse.Namespace) -> int:
    from treeadv.study.report import write_reports

    for path in write_reports(args.dir, args.out or args.dir):
        print(path)
    return 0
