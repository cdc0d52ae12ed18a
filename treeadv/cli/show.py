"""The command `treeadv show`, which draws the forests of an Arrow file in the terminal, as a page or as a picture."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from treeadv.cli.files import check_target, replaced
from treeadv.cli.parser import Commands, add_command
from treeadv.errors import BadForest, BadInput

if TYPE_CHECKING:
    from treeadv.report.picture import Picture


def add(commands: Commands) -> None:
    text = "draw the forests of an Arrow file in the terminal, as a page or as a picture"
    p = add_command(commands, "show", show, text)
    p.add_argument("file", type=Path, metavar="FOREST.arrow")
    p.add_argument("--index", type=int, metavar="N", help="only the N-th forest, counted from 0")
    p.add_argument("--html", type=Path, metavar="FILE.html", help="write one self-contained page instead")
    p.add_argument("--svg", type=Path, metavar="FILE.svg", help="write a picture of one forest instead")
    p.add_argument(
        "--model", type=Path, metavar="DIR", help="folder with the tokenizer (default: the model named in the file)"
    )
    p.add_argument("--preset", default="treeadv", help="advantages to show (default treeadv)")


def show(args: argparse.Namespace) -> int:
    from rich.console import Console

    from treeadv.report.page import forests_page
    from treeadv.report.terminal import forest_tree
    from treeadv.report.tree import standalone

    for target in filter(None, (args.html, args.svg)):
        check_target(target)
    pictures = _pictures(args)
    if args.svg:
        with replaced(args.svg) as scratch:
            scratch.write_text(standalone(pictures[0]), encoding="utf-8")
    if args.html:
        with replaced(args.html) as scratch:
            scratch.write_text(forests_page(args.file.name, pictures), encoding="utf-8")
    if not (args.html or args.svg):
        console = Console()
        for picture in pictures:
            console.print(forest_tree(picture))
    return 0


def _pictures(args: argparse.Namespace) -> list[Picture]:
    from treeadv.learning.advantage import advantages
    from treeadv.presets import build_advantage
    from treeadv.report.picture import Numbers, Vocabulary, picture
    from treeadv.wire import read_file

    spec = build_advantage(args.preset)
    forests, model = read_file(args.file)
    if args.index is not None:
        if not 0 <= args.index < len(forests):
            raise BadInput(f"--index {args.index}: {args.file} holds {len(forests)} forests, counted from 0")
        forests = [forests[args.index]]
    if args.svg and len(forests) > 1:
        raise BadInput(f"--svg {args.svg}: {args.file} holds {len(forests)} forests; choose one with --index N")
    folder = args.model or (Path(model) if model and (Path(model) / "tokenizer.json").is_file() else None)
    if folder is None:
        where = f"in {model}" if model else f"named in {args.file}"
        print(f"treeadv: no tokenizer {where}; tokens are shown as numbers (--model DIR)", file=sys.stderr)
    vocabulary = Vocabulary(folder) if folder else Numbers()
    try:
        return [picture(f.check(), vocabulary, advantages(f, spec)[0] if f.graded else None) for f in forests]
    except BadForest as e:
        raise BadInput(f"{args.file}: {e}") from e
