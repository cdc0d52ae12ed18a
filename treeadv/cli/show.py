"""The command `treeadv show`, which draws forests of a run or of a file in the terminal, as a page or as a picture."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from os.path import commonprefix
from pathlib import Path
from typing import TYPE_CHECKING

from treeadv.cli.files import check_target, replaced
from treeadv.cli.parser import Commands, add_command
from treeadv.command_line import local, output, readable
from treeadv.errors import BadInput
from treeadv.visible import visible

if TYPE_CHECKING:
    from treeadv.forest import Forest
    from treeadv.report.picture import Picture
    from treeadv.view.rows import Facts, ForestRow
    from treeadv.view.sources import Source

LISTED = 40  # the list shows this many of the last forests of a run
EXCERPT = 40  # the list shows this many of the last characters of a prompt


def add(commands: Commands) -> None:
    text = "draw forests of a run or of an Arrow file in the terminal, as a page or as a picture"
    p = add_command(commands, "show", show, text)
    p.add_argument(
        "path", type=readable, metavar="PATH", help="the folder or URI of a run, or an Arrow file of forests"
    )
    p.add_argument("--step", type=int, metavar="N", help="of a run: the forests of this step; without it a list")
    p.add_argument("--index", type=int, metavar="N", help="only the N-th forest of the step or file, counted from 0")
    p.add_argument("--leaf", type=int, metavar="N", help="the whole text of one leaf, with what the verifier read")
    p.add_argument("--full", action="store_true", help="every token of every segment")
    p.add_argument("--html", type=output, metavar="FILE.html", help="write one self-contained page instead")
    p.add_argument("--svg", type=output, metavar="FILE.svg", help="write a picture of one forest instead")
    p.add_argument(
        "--model",
        type=local,
        metavar="DIR",
        help="folder with the tokenizer (default: the model of the run or file)",
    )
    p.add_argument("--preset", help="advantages to show for a file (default treeadv)")


def show(args: argparse.Namespace) -> int:
    from treeadv.storage.run_folder import opened_run

    for target in filter(None, (args.html, args.svg)):
        check_target(target)
    with opened_run(args.path) as path:
        return _show(args, path)


def _show(args: argparse.Namespace, path: Path) -> int:
    """Show what `path` holds. It is args.path, or a folder with the files of the run at the URI args.path."""
    from treeadv.report.page import forests_page
    from treeadv.report.picture import Numbers
    from treeadv.report.tree import standalone
    from treeadv.view.sources import RunSource, open_source

    source = open_source(path, args.model, args.preset)
    rows, fault = source.rows()
    is_run = isinstance(source, RunSource)
    chosen = _of_step(args, rows, fault) if is_run and args.step is not None else []
    if fault:
        print(f"treeadv: {fault}", file=sys.stderr)
    if is_run and args.step is None:
        return _list(args, source, rows)
    chosen = chosen if is_run else _of_file(args, rows)
    pictures = _pictures(args, source, [source.forest(row.key) for row in chosen])
    if isinstance(source.vocabulary, Numbers):
        model = source.about()["model"]
        where = visible(f"of the model {model}" if model else f"named in {args.path}")
        print(f"treeadv: no tokenizer {where}; tokens are shown as numbers (--model DIR)", file=sys.stderr)
    if args.svg:
        with replaced(args.svg) as scratch:
            scratch.write_text(standalone(pictures[0]), encoding="utf-8")
    if args.html:
        with replaced(args.html) as scratch:
            scratch.write_text(forests_page(path.name, pictures), encoding="utf-8")
    if not (args.html or args.svg):
        _print(args, source, pictures)
    return 0


def _of_step(args: argparse.Namespace, rows: Sequence[ForestRow], fault: str) -> list[ForestRow]:
    """Return the rows of the step, or the single row that --index chooses. `fault` says what is wrong with the
    journal."""
    last = max((row.step for row in rows if row.step is not None), default=0)
    found = sorted((row for row in rows if row.step == args.step), key=lambda row: row.place or 0)
    if not found:
        if fault or not last:
            raise BadInput(
                f"--step {args.step}: {fault or f'the journal of {args.path} has no step; treeadv audit checks it'}"
            )
        raise BadInput(f"--step {args.step}: the journal of {args.path} has steps up to {last}")
    return _indexed(args, found, f"step {args.step} of {args.path}")


def _of_file(args: argparse.Namespace, rows: Sequence[ForestRow]) -> list[ForestRow]:
    if args.step is not None:
        raise BadInput(f"--step {args.step}: {args.path} is a file of forests without steps; remove --step")
    return _indexed(args, rows, str(args.path))


def _indexed(args: argparse.Namespace, rows: Sequence[ForestRow], where: str) -> list[ForestRow]:
    if args.index is not None:
        if not 0 <= args.index < len(rows):
            raise BadInput(f"--index {args.index}: {where} holds {len(rows)} forests, counted from 0")
        return [rows[args.index]]
    for option in ("svg", "leaf"):
        value = getattr(args, option)
        if value is not None and len(rows) > 1:
            raise BadInput(f"--{option} {value}: {where} holds {len(rows)} forests; choose one with --index N")
    return list(rows)


def _pictures(args: argparse.Namespace, source: Source, forests: Sequence[Forest]) -> list[Picture]:
    from treeadv.learning.advantage import advantages
    from treeadv.report.picture import picture

    if args.leaf is not None and not 0 <= args.leaf < forests[0].leaves:
        raise BadInput(f"--leaf {args.leaf}: the forest has {forests[0].leaves} leaves, counted from 0")
    return [picture(f, source.vocabulary, advantages(f, source.advantage)[0] if f.graded else None) for f in forests]


def _print(args: argparse.Namespace, source: Source, pictures: Sequence[Picture]) -> None:
    from rich.console import Console

    from treeadv.report.terminal import TOKENS, forest_tree, leaf_text
    from treeadv.view.reading import part_read

    console = Console()
    for p in pictures:
        if args.leaf is not None:
            console.print(leaf_text(p, args.leaf, part_read(p.forest, args.leaf, source.vocabulary)))
        else:
            console.print(forest_tree(p, sys.maxsize if args.full else TOKENS))


def _list(args: argparse.Namespace, source: Source, rows: Sequence[ForestRow]) -> int:
    """List the last forests of a run by step and index."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    for option in ("index", "leaf", "svg", "html"):
        if getattr(args, option) is not None:
            raise BadInput(f"--{option}: {args.path} is a run; choose a step with --step N")
    trained = sorted((row for row in rows if row.step is not None), key=lambda row: (row.step or 0, row.place or 0))
    facts = [_facts(source, row) for row in trained[-LISTED:]]
    prompts = iter(_differing([f.prompt for f in facts if not f.fault]))
    made = Table(box=None, pad_edge=False)
    for name in ("step", "index", "reward", "verdicts", "longest leaf"):
        made.add_column(name, no_wrap=True)
    made.add_column("prompt")
    for row, f in zip(trained[-LISTED:], facts, strict=True):
        cells = [str(row.step), str(row.place), "-" if row.reward is None else f"{row.reward:.2f}"]
        verdicts = ", ".join(f"{n} {name}" for name, n in (f.verdicts or {}).items())
        cells += ["", "", f.fault] if f.fault else [verdicts, f"{f.longest:,} tokens", next(prompts)]
        made.add_row(*map(Text, cells))
    console = Console()
    console.print(made)
    left_out = f"the last {LISTED} of " if len(trained) > LISTED else ""
    end = f"{left_out}{len(trained)} forests; treeadv show {shlex.quote(str(args.path))} --step N draws a step"
    console.print(Text(visible(end), style="dim"), soft_wrap=True)  # a wrapped command cannot be copied
    return 0


def _facts(source: Source, row: ForestRow) -> Facts:
    from treeadv.view.rows import Facts, facts_of

    if not row.readable:
        return Facts(fault=row.note)
    try:
        return facts_of(source.forest(row.key), source.vocabulary)
    except BadInput as e:
        return Facts(fault=visible(str(e)))


def _differing(prompts: Sequence[str]) -> list[str]:
    """Return each prompt on one line, without the words at its start and at its end that all prompts share."""
    texts = [" ".join(prompt.split()) for prompt in prompts]
    if len(set(texts)) < 2:
        return [_last(text) for text in texts]
    head = commonprefix(texts).rfind(" ") + 1  # noqa: RUF071 - of texts, not of paths
    ends = [text[head:][::-1] for text in texts]
    tail = commonprefix(ends).rfind(" ") + 1  # noqa: RUF071 - as above
    return [_last(end[tail:][::-1]) for end in ends]


def _last(text: str) -> str:
    return text if len(text) <= EXCERPT else f"… {text[-EXCERPT:]}"
