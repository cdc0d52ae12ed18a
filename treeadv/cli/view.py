"""The command `treeadv view`, which shows the forests of a run on a web page, or writes the page as a folder of
files.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from treeadv.cli.parser import Commands, add_command
from treeadv.command_line import local, output
from treeadv.errors import BadInput
from treeadv.jsonl import JsonObject
from treeadv.visible import visible

if TYPE_CHECKING:
    from treeadv.view.catalogue import Catalogue

PORT = 8642


def add(commands: Commands) -> None:
    text = "show the forests of a run, also of a running one, as a web page on this machine"
    p = add_command(commands, "view", view, text)
    p.add_argument("path", type=local, metavar="RUN", help="the folder of a run, or an Arrow file of forests")
    p.add_argument("--port", type=_port, default=PORT, metavar="N", help=f"default {PORT}; 0 for any free one")
    p.add_argument("--bundle", type=output, metavar="DIR", help="write the page and its data into a folder instead")
    p.add_argument("--steps", type=_steps, metavar="A-B", help="with --bundle: only the forests of these steps")
    p.add_argument("--model", type=local, metavar="DIR", help="folder with the tokenizer (default: the run's model)")
    p.add_argument("--preset", help="advantages to show for a file of forests (default treeadv)")


def view(args: argparse.Namespace) -> int:
    from treeadv.view.catalogue import Catalogue
    from treeadv.view.sources import open_source

    if args.steps and not args.bundle:
        raise BadInput("--steps goes with --bundle; on the page, filter by step")
    source = open_source(args.path, args.model, args.preset)
    if args.steps and not any(row.step is not None and _within(row.step, args.steps) for row in source.rows()[0]):
        raise BadInput(f"--steps {args.steps[0]}-{args.steps[1]}: {args.path} has no forest of these steps")
    if not source.about()["text"]:
        print("treeadv: no tokenizer is found; tokens are shown as numbers (--model DIR)", file=sys.stderr)
    catalogue = Catalogue(source)
    return _bundle(catalogue, args.bundle, args.steps) if args.bundle else _serve(catalogue, args.port)


def _serve(catalogue: Catalogue, port: int) -> int:
    from treeadv.view.server import Server

    with Server(catalogue, port) as server:
        catalogue.start()
        print(f"{server.address}  (Ctrl-C ends)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            catalogue.stop()
    return 0


def _bundle(catalogue: Catalogue, target: Path, steps: tuple[int, int] | None) -> int:
    from rich.console import Console
    from rich.progress import Progress

    from treeadv.view.bundle import write_bundle

    def chosen(row: JsonObject) -> bool:
        return steps is None or (row["step"] is not None and _within(row["step"], steps))

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("forests", total=None)

        def shown(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        forests, size = write_bundle(catalogue, target, chosen, shown)
    print(visible(f"{target / 'index.html'}: {forests} forests, {size / 1e6:.1f} MB with data"))
    return 0


def _within(step: int, steps: tuple[int, int]) -> bool:
    return steps[0] <= step <= steps[1]


def _port(text: str) -> int:
    if not text.isdecimal() or not int(text) < 65_536:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: give 0 to 65535")
    return int(text)


def _steps(text: str) -> tuple[int, int]:
    """Parse a range of steps, `A-B` or `A`. Steps are counted from 1."""
    match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no range of steps: write 3-7, or 5")
    first, last = int(match[1]), int(match[2] or match[1])
    if first > last:
        raise argparse.ArgumentTypeError(f"{text!r} is no range of steps: {first} comes after {last}")
    return first, last
