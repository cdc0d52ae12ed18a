"""The command `treeadv generate`, which draws and grades rollouts of a model on a file of problems."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from treeadv.cli.files import check_target, replaced
from treeadv.cli.parser import Commands, add_command
from treeadv.command_line import FIELD, Parser, local, output, positive
from treeadv.errors import BadInput
from treeadv.visible import visible

if TYPE_CHECKING:
    from treeadv.config import Config
    from treeadv.data.problems import Problem
    from treeadv.forest import Forest


def add(commands: Commands) -> None:
    p = add_command(
        commands, "generate", generate, "grow forests for a file of problems and write them, graded, to an Arrow file"
    )
    add_model_arguments(p, ".jsonl, .parquet or .csv with problem and answer")
    p.add_argument("--out", type=output, required=True, metavar="FILE.arrow")


def add_model_arguments(p: Parser, data: str) -> None:
    """Add the arguments that name model, problems and configuration. `data` is the help text of --data."""
    p.add_argument("--model", required=True, metavar="MODEL", help="Hugging Face folder, or smollm2-135m-instruct")
    p.add_argument("--data", type=local, required=True, metavar="FILE", help=data)
    p.add_argument("--limit", type=positive, metavar="N", help="only the first N problems of a file")
    p.add_argument("--config", type=local, metavar="RECIPE.yaml", help="take prompt, sampling and engine from a recipe")
    p.add_argument("overrides", nargs="*", metavar=FIELD, help="set any field of the configuration")


def generate(args: argparse.Namespace) -> int:
    from treeadv.wire import write_file

    check_target(args.out)
    config, model, problems = _inputs(args)
    forests = _grow(config, model, problems)
    with replaced(args.out) as scratch:
        write_file(scratch, forests, str(model))
    leaves, tokens = sum(f.leaves for f in forests), sum(f.tokens for f in forests)
    expanded = sum(f.expanded_tokens for f in forests)
    judged = sum(int(f.judged.sum()) for f in forests)
    reward = sum(float(f.reward[f.judged].sum()) for f in forests) / max(judged, 1)
    print(
        f"{visible(str(args.out))}: {len(forests)} forests, {leaves} leaves, mean reward {reward:.3f}, "
        f"{tokens} tokens instead of {expanded} ({1 - tokens / expanded:.0%} shared)"
    )
    return 0


def configure(args: argparse.Namespace) -> Config:
    """Return the configuration that the arguments give. Raises `BadInput` before a model is loaded."""
    from treeadv import config as configuration
    from treeadv.data.model_folder import check_path
    from treeadv.engines.registry import check_engine
    from treeadv.evaluation.sets import HELD_OUT
    from treeadv.rewards.verifiers.registry import find_verifier
    from treeadv.sampling.rules import build_rule

    data = [] if str(args.data) == HELD_OUT else ["task.sources=[]", f"task.source={json.dumps(str(args.data))}"]
    if not data and not args.config:
        raise BadInput(f"--data {HELD_OUT}: give by --config the recipe that sets task.held_out")
    given = [*data, f"model.path={json.dumps(args.model)}", *args.overrides]
    config = configuration.load(args.config, given) if args.config else configuration.build({}, given, "command line")
    check_engine(config)
    find_verifier(config.task.grader)
    build_rule(config.sampling.rule, config.sampling.rule_options)
    check_path(config.model.path, config.model.cache)
    return config


def _inputs(args: argparse.Namespace) -> tuple[Config, Path, list[Problem]]:
    """Return the configuration, the model folder and the problems."""
    from treeadv.checks import check_answers, check_prompts, verifiers
    from treeadv.data.model_folder import resolve
    from treeadv.data.tasks import file_problems

    config = configure(args)
    problems = file_problems(args.data, config.task)[: args.limit]
    check_prompts(problems, config)
    with verifiers(config) as judge:
        check_answers(problems, config, judge)
    return config, resolve(config.model.path, config.model.cache), problems


def _grow(config: Config, model: Path, problems: Sequence[Problem]) -> list[Forest]:
    import asyncio

    from rich.console import Console
    from rich.progress import Progress

    from treeadv.local.rollouts import rollouts

    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("forests", total=len(problems))
        return asyncio.run(rollouts(config, model, problems, lambda _: progress.advance(task)))
