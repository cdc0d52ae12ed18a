"""The command `treeadv eval`, which evaluates a model on held-out problems."""

from __future__ import annotations

import argparse
import asyncio
import json
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

from treeadv.cli.parser import Commands, add_command
from treeadv.cli.rollouts import add_model_arguments, configure
from treeadv.command_line import output, positive
from treeadv.errors import BadInput

if TYPE_CHECKING:
    from treeadv.evaluation.scores import Score

_WIDTH = 160
FIXED = ("sampling.leaves", "sampling.trees", "sampling.rule")


def add(commands: Commands) -> None:
    p = add_command(
        commands, "eval", evaluate,
        "avg@k, pass@k and tokens of a model on files of problems; the same command goes on after a kill",
    )  # fmt: skip
    add_model_arguments(p, "a file of problems, a folder of them (a file is a set), or held-out (with --config)")
    p.add_argument("--subset", type=positive, metavar="N", help="N problems of each set, the same in every evaluation")
    p.add_argument(
        "--samples", type=positive, default=8, metavar="N", help="independent answers to each problem (default 8)"
    )
    p.add_argument(
        "--out", type=output, metavar="DIR",
        help="keep prompts, answers and results here (default: evaluations/MODEL-DIGEST of the settings)",
    )  # fmt: skip
    p.add_argument("--json", action="store_true", help="print JSON")


def evaluate(args: argparse.Namespace) -> int:
    from treeadv.checks import check_answers, check_prompts, verifiers
    from treeadv.data.model_folder import resolve
    from treeadv.evaluation.folder import EvalFolder
    from treeadv.evaluation.sets import independent, read_sets
    from treeadv.local.evaluation import settings_of
    from treeadv.local.measuring import measure

    for given in args.overrides:
        if given.partition("=")[0] in FIXED:
            raise BadInput(
                f"override {given!r}: eval draws independent answers; --samples sets their number for each problem"
            )
    config = independent(configure(args), args.samples)
    sets = read_sets(args.data, config.task, args.limit, args.subset)
    problems = [p for s in sets for p in s.problems]
    check_prompts(problems, config)
    with verifiers(config) as judge:
        check_answers(problems, config, judge)
    model = resolve(config.model.path, config.model.cache)
    settings = settings_of(config, model, sets, args.samples)
    digest = blake2b(json.dumps(settings).encode(), digest_size=4).hexdigest()
    folder = EvalFolder(args.out or Path("evaluations") / f"{model.name}-{digest}", settings)
    score = asyncio.run(measure(config, model, sets, args.samples, folder))
    folder.finish(score, settings)
    if args.json:
        print(json.dumps({"folder": str(folder.path), **score.to_json()}, indent=2))
    else:
        _show(score, folder.path)
    return 0


def _show(score: Score, folder: Path) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from treeadv.evaluation.table import header, rows

    table = Table(*header(score), box=box.SIMPLE, caption="in percent, with 95 % intervals over the problems")
    for row in rows(score):
        table.add_row(*row)
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)  # a file gets a fixed width, so that no line is cut
    console.print(table)
    console.print(f"Prompts, answers and results: {folder}", highlight=False, soft_wrap=True)
