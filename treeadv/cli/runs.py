"""`treeadv audit` and `treeadv report`: what the files of a run tell."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from treeadv.cli.parser import Commands, add_command
from treeadv.visible import visible


def add(commands: Commands) -> None:
    p = add_command(commands, "audit", audit, "check that a run lost no forest and trained none twice")
    p.add_argument("run_dir", metavar="RUN")
    p.add_argument("--json", action="store_true", help="print JSON")

    p = add_command(commands, "report", report, "write report.html into a run folder")
    p.add_argument("run_dir", type=Path, metavar="RUN")


def audit(args: argparse.Namespace) -> int:
    from treeadv.replay.audit import audit as audit_run

    result = audit_run(args.run_dir)
    print(json.dumps(result.to_dict(), indent=2) if args.json else visible(result.table(), newline="\n"))
    return 0 if result.sound else 1


def report(args: argparse.Namespace) -> int:
    from treeadv.report.run import write_report

    print(visible(str(write_report(args.run_dir))))
    return 0
