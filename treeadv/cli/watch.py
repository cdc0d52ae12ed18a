"""The command `treeadv watch`, which shows a run in the terminal from its files."""

from __future__ import annotations

import argparse
import time

from treeadv.cli.parser import Commands, add_command
from treeadv.command_line import local, positive


def add(commands: Commands) -> None:
    p = add_command(commands, "watch", watch, "show a run on the screen while it runs, or as it ended, from its files")
    p.add_argument("run_dir", type=local, metavar="RUN")
    p.add_argument("--interval", type=positive, default=2, metavar="SECONDS", help="between two updates (default 2)")


def watch(args: argparse.Namespace) -> int:
    """Show the run until it ends or until Ctrl-C. Shows it once if there is no terminal or if it is not running."""
    from rich.console import Console
    from rich.live import Live

    from treeadv.report.run_view import RunView
    from treeadv.report.screen import screen, summary

    view, console = RunView(args.run_dir), Console()
    if console.is_terminal and view.state == "running":
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while view.state == "running":
                live.update(screen(view, console.width), refresh=True)
                time.sleep(args.interval)
                view.refresh()
    console.print(summary(view))
    return 0
