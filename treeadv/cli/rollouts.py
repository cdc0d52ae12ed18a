"""`treeadv generate` and `treeadv eval`: rollouts of a model on a file of problems."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from treeadv.cli.files import check_target, replaced
from treeadv.cli.parser import Commands, Parser, add_command, positive
from treeadv.errors import BadInput
from treeadv.visible import visible

if TYPE_CHECKING:
    from treeadv.config import Config
    from treeadv.data.tasks import Problem
    from treeadv.forest import Forest


def add(commands: Commands) -> None:
    p = add_command(
        commands, "generate", generate, "grow forests for a file of problems and write them, graded, to an Arrow file"
    )
    _add_arguments(p)
    p.add_argument("--out", type=Path, required=True, metavar="FILE.arrow")

    p = add_command(commands, "eval", evaluate, "pass@1, pass@k and tokens of a model on a file of problems")
    _add_arguments(p)
    p.add_argument("--samples", type=positive, default=8, metavar="N", help="independent answers a problem (default 8)")
    p.add_argument("--json", action="store_true", help="print JSON")


def _add_arguments(p: Parser) -> None:
    p.add_argument("--model", required=True, metavar="DIR", help="Hugging Face folder, or smollm2-135m-instruct")
    p.add_argument(
        "--data", type=Path, required=True, metavar="FILE", help=".jsonl or .parquet with problem and answer"
    )
    p.add_argument("--limit", type=positive, metavar="N", help="only the first N problems")
    p.add_argument("--config", type=Path, metavar="RECIPE.yaml", help="take prompt, sampling and engine from a recipe")
    p.add_argument("overrides", nargs="*", metavar="section.key=value", help="set any field of the configuration")


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


def evaluate(args: argparse.Namespace) -> int:
    from treeadv.local import evaluation

    for given in args.overrides:
        if given.partition("=")[0] in ("sampling.leaves", "sampling.trees", "sampling.rule"):
            raise BadInput(
                f"override {given!r}: eval draws independent answers; --samples sets their number for each problem"
            )
    config, model, problems = _inputs(args)
    result = evaluation.evaluate(_grow(evaluation.independent(config, args.samples), model, problems))
    if args.json:
        figures = asdict(result)
        passes = {f"pass@{k}": share for k, share in figures.pop("pass_at").items()}
        print(json.dumps({"model": str(model), "data": str(args.data), **passes, **figures}, indent=2))
        return 0
    for k, share in result.pass_at.items():
        print(f"pass@{k:<3} {share:.4f}" + (f" +- {result.pass_1_error:.4f}" if k == 1 else ""))
    verdicts = ", ".join(f"{name} {n}" for name, n in result.verdicts.items())
    print(
        f"{result.problems} problems x {result.samples} samples, {result.tokens} tokens, "
        f"{result.tokens_mean:.1f} an answer, {result.cut:.0%} cut at the limit; {verdicts}"
    )
    return 0


def _inputs(args: argparse.Namespace) -> tuple[Config, Path, list[Problem]]:
    """Configuration, model folder and problems. Finds every fault of the arguments before a model is loaded."""
    from treeadv import config as configuration
    from treeadv.data.model_folder import resolve
    from treeadv.data.tasks import read_problems
    from treeadv.engines.registry import check_engine
    from treeadv.launch import check_answers
    from treeadv.rewards.verifiers.registry import find_verifier
    from treeadv.sampling.rules import build_rule

    given = [f"task.source={json.dumps(str(args.data))}", f"model.path={json.dumps(args.model)}", *args.overrides]
    config = configuration.load(args.config, given) if args.config else configuration.build({}, given, "command line")
    check_engine(config)
    find_verifier(config.task.grader)
    build_rule(config.sampling.rule, config.sampling.rule_options)
    problems = read_problems(args.data, config.task.grader)[: args.limit]
    check_answers(problems, config)
    return config, resolve(config.model.path, config.model.cache), problems


def _grow(config: Config, model: Path, problems: Sequence[Problem]) -> list[Forest]:
    import asyncio

    from rich.console import Console
    from rich.progress import Progress

    from treeadv.local.rollouts import rollouts

    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("forests", total=len(problems))
        return asyncio.run(rollouts(config, model, problems, lambda _: progress.advance(task)))
