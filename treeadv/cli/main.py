"""The commands that need no Ray. actors/cli.py adds its own to the same parser, so that there is one `treeadv`.

Nothing heavy is imported before a command runs: `treeadv --help` answers at once.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from treeadv import __version__
from treeadv.errors import BadForest, BadInput, single_errors

if TYPE_CHECKING:
    from treeadv.config import Config
    from treeadv.data.tasks import Problem
    from treeadv.forest import Forest
    from treeadv.report.picture import Picture

Commands = Any  # what argparse's add_subparsers returns; it has no public type


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, like every other error of the command."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"treeadv: error: {message} ({self.prog} --help)\n")


def new_parser() -> tuple[Parser, Commands]:
    """The parser of `treeadv` and where its commands are added."""
    parser = Parser(prog="treeadv", description="Tree-structured reinforcement learning for reasoning language models.")
    parser.add_argument("--version", action="version", version=f"treeadv {__version__}")
    return parser, parser.add_subparsers(title="commands", metavar="COMMAND", required=True)


def main(argv: Sequence[str] | None = None) -> int:
    """The library's commands alone; the installed `treeadv` (actors.cli) has these and the ones that need Ray."""
    parser, commands = new_parser()
    add_commands(commands)
    return dispatch(parser, argv)


def dispatch(parser: Parser, argv: Sequence[str] | None = None) -> int:
    """Parse, run the command and return its exit code; bad input is one line on stderr and code 2."""
    args = parser.parse_args(argv)
    try:
        return args.call(args)
    except (BadInput, BaseExceptionGroup) as error:
        bad = next((e for e in single_errors(error) if isinstance(e, BadInput)), None)
        if bad is None:
            raise
        print(f"treeadv: error: {bad}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


# ---- arguments ---------------------------------------------------------------------------------------------------------------
def add_commands(commands: Commands) -> None:
    """Add generate, grade, show, eval, audit and report."""
    p = _command(commands, "generate", generate, "grow forests for a file of problems and write them, graded, to an Arrow file")
    _add_rollout_arguments(p)
    p.add_argument("--out", type=Path, required=True, metavar="FILE.arrow")

    p = _command(commands, "eval", evaluate, "pass@1, pass@k and tokens of a model on a file of problems")
    _add_rollout_arguments(p)
    p.add_argument("--samples", type=_positive, default=8, metavar="N", help="independent answers a problem (default 8)")
    p.add_argument("--json", action="store_true", help="print JSON")

    p = _command(commands, "grade", grade, "verdicts for a JSONL file of problem, answer and response")
    p.add_argument("file", type=Path, metavar="FILE.jsonl")
    p.add_argument("--verifier", default="math", help="a verifier as in task.verifier (default math)")
    p.add_argument("--workers", type=_positive, default=2, metavar="N", help="verifier processes (default 2)")
    p.add_argument("--timeout", type=float, default=5.0, metavar="SECONDS", help="limit of one answer (default 5)")
    p.add_argument("--out", type=Path, metavar="FILE.jsonl", help="write the lines with verdict, reward and detail here")
    p.add_argument("--json", action="store_true", help="print JSON")

    p = _command(commands, "show", show, "draw the forests of an Arrow file in the terminal, as a page or as a picture")
    p.add_argument("file", type=Path, metavar="FOREST.arrow")
    p.add_argument("--index", type=int, metavar="N", help="only the N-th forest, counted from 0")
    p.add_argument("--html", type=Path, metavar="FILE.html", help="write one self-contained page instead")
    p.add_argument("--svg", type=Path, metavar="FILE.svg", help="write a picture of one forest instead")
    p.add_argument("--model", type=Path, metavar="DIR", help="folder with the tokenizer (default: the model named in the file)")
    p.add_argument("--preset", default="treeadv", help="advantages to show (default treeadv)")

    p = _command(commands, "audit", audit, "check that a run lost no forest and trained none twice")
    p.add_argument("run_dir", metavar="RUN")
    p.add_argument("--json", action="store_true", help="print JSON")

    p = _command(commands, "report", report, "write report.html into a run folder")
    p.add_argument("run_dir", type=Path, metavar="RUN")


def _command(commands: Commands, name: str, run: Callable[[argparse.Namespace], int], text: str) -> Parser:
    parser: Parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(call=run)
    return parser


def _add_rollout_arguments(p: Parser) -> None:
    p.add_argument("--model", required=True, metavar="DIR", help="Hugging Face folder, or smollm2-135m-instruct")
    p.add_argument("--data", type=Path, required=True, metavar="FILE", help=".jsonl or .parquet with problem and answer")
    p.add_argument("--limit", type=_positive, metavar="N", help="only the first N problems")
    p.add_argument("--config", type=Path, metavar="RECIPE.yaml", help="take prompt, sampling and engine from a recipe")
    p.add_argument("overrides", nargs="*", metavar="section.key=value", help="set any field of the configuration")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


# ---- commands ----------------------------------------------------------------------------------------------------------------
def generate(args: argparse.Namespace) -> int:
    from treeadv.wire import write_file

    config, model, problems = _rollout_inputs(args)
    forests = _rollouts(config, model, problems)
    with _written(args.out) as scratch:
        write_file(scratch, forests, str(model))
    tokens, expanded = sum(f.tokens for f in forests), sum(f.expanded_tokens for f in forests)
    reward = sum(float(f.reward.sum()) for f in forests) / sum(f.leaves for f in forests)
    print(
        f"{args.out}: {len(forests)} forests, {sum(f.leaves for f in forests)} leaves, mean reward {reward:.3f}, "
        f"{tokens} tokens instead of {expanded} ({1 - tokens / expanded:.0%} shared)"
    )
    return 0


def evaluate(args: argparse.Namespace) -> int:
    from treeadv.local import evaluation

    for given in args.overrides:
        if given.partition("=")[0] in ("sampling.leaves", "sampling.trees", "sampling.rule"):
            raise BadInput(f"override {given!r}: eval draws independent answers, as many a problem as --samples says")
    config, model, problems = _rollout_inputs(args)
    result = evaluation.evaluate(_rollouts(evaluation.independent(config, args.samples), model, problems))
    if args.json:
        figures = asdict(result)
        passes = {f"pass@{k}": share for k, share in figures.pop("pass_at").items()}
        print(json.dumps({"model": str(model), "data": str(args.data), **passes, **figures}, indent=2))
        return 0
    for k, share in result.pass_at.items():
        print(f"pass@{k:<3} {share:.4f}" + (f" +- {result.pass_1_error:.4f}" if k == 1 else ""))
    verdicts = ", ".join(f"{name} {n}" for name, n in result.verdicts.items())
    print(
        f"{result.problems} problems x {result.samples} samples, {result.tokens} tokens, {result.tokens_mean:.1f} an answer, "
        f"{result.cut:.0%} cut at the limit; {verdicts}"
    )
    return 0


def grade(args: argparse.Namespace) -> int:
    from treeadv.rewards.files import grade_file

    if not 0 < args.timeout < math.inf:
        raise BadInput(f"--timeout {args.timeout:g}: a limit in seconds must be a number above 0")
    with _written(args.out) if args.out else nullcontext() as scratch:
        summary = grade_file(args.file, args.verifier, args.workers, args.timeout, scratch)
    if args.json:
        print(json.dumps(asdict(summary), indent=2))
    else:
        verdicts = ", ".join(f"{name} {n}" for name, n in summary.verdicts.items())
        print(f"{summary.answers} answers in {summary.seconds:.1f} s: {verdicts}; mean reward {summary.reward_mean:.3f}")
    return 0


def show(args: argparse.Namespace) -> int:
    from rich.console import Console

    from treeadv.report.page import forests_page
    from treeadv.report.terminal import forest_tree
    from treeadv.report.tree import standalone

    for target in filter(None, (args.html, args.svg)):
        _check_target(target)
    pictures = _pictures(args)
    if args.svg:
        with _written(args.svg) as scratch:
            scratch.write_text(standalone(pictures[0]), encoding="utf-8")
    if args.html:
        with _written(args.html) as scratch:
            scratch.write_text(forests_page(args.file.name, pictures), encoding="utf-8")
    if not (args.html or args.svg):
        console = Console()
        for p in pictures:
            console.print(forest_tree(p))
    return 0


def audit(args: argparse.Namespace) -> int:
    from treeadv.replay.audit import audit as audit_run

    result = audit_run(args.run_dir)
    print(json.dumps(result.to_dict(), indent=2) if args.json else result.table())
    return 0 if result.sound else 1


def report(args: argparse.Namespace) -> int:
    from treeadv.report.run import write_report

    print(write_report(args.run_dir))
    return 0


# ---- helpers -----------------------------------------------------------------------------------------------------------------
def _rollout_inputs(args: argparse.Namespace) -> tuple[Config, Path, list[Problem]]:
    """Everything that can be wrong with the arguments is found here, before a model is loaded."""
    from treeadv import config as configuration
    from treeadv.data.model_folder import resolve
    from treeadv.data.tasks import read_problems
    from treeadv.engines.registry import check_engine
    from treeadv.rewards.verifiers.registry import find_verifier
    from treeadv.sampling.rules import build_rule

    given = [f"task.source={json.dumps(str(args.data))}", f"model.path={json.dumps(args.model)}", *args.overrides]
    config = configuration.load(args.config, given) if args.config else configuration.build({}, given, "command line")
    check_engine(config)
    find_verifier(config.task.verifier)
    build_rule(config.sampling.rule, config.sampling.rule_options)
    problems = read_problems(args.data, config.task.verifier)[: args.limit]
    if out := getattr(args, "out", None):
        _check_target(out)
    return config, resolve(config.model.path, config.model.cache), problems


def _rollouts(config: Config, model: Path, problems: Sequence[Problem]) -> list[Forest]:
    import asyncio

    from rich.console import Console
    from rich.progress import Progress

    from treeadv.local.rollouts import rollouts

    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("forests", total=len(problems))
        return asyncio.run(rollouts(config, model, problems, lambda _: progress.advance(task)))


def _pictures(args: argparse.Namespace) -> list[Picture]:
    from treeadv.learning.advantage import advantages
    from treeadv.presets import build_advantage
    from treeadv.report.picture import Numbers, Vocabulary, picture
    from treeadv.wire import read_file

    spec = build_advantage(args.preset)
    forests, named = read_file(args.file)
    if args.index is not None:
        if not 0 <= args.index < len(forests):
            raise BadInput(f"--index {args.index}: {args.file} holds {len(forests)} forests, counted from 0")
        forests = [forests[args.index]]
    if args.svg and len(forests) > 1:
        raise BadInput(f"--svg {args.svg}: {args.file} holds {len(forests)} forests; choose one with --index N")
    folder = args.model or (Path(named) if named and (Path(named) / "tokenizer.json").is_file() else None)
    if folder is None:
        print(f"treeadv: no tokenizer at {named or 'hand'}; tokens are shown as numbers (--model DIR)", file=sys.stderr)
    vocabulary = Vocabulary(folder) if folder else Numbers()
    try:
        return [picture(f.check(), vocabulary, advantages(f, spec)[0] if f.graded else None) for f in forests]
    except BadForest as e:
        raise BadInput(f"{args.file}: {e}") from e


def _check_target(path: Path) -> None:
    if not path.parent.is_dir():
        raise BadInput(f"{path}: its folder does not exist; make {path.parent} first")
    if path.is_dir():
        raise BadInput(f"{path}: is a folder; name a file")


@contextmanager
def _written(path: Path) -> Iterator[Path]:
    """A scratch file beside `path` that takes its place when all is written, and is removed when anything fails."""
    _check_target(path)
    scratch = path.with_name(f".{path.name}.part")
    try:
        yield scratch
        scratch.replace(path)
    except OSError as e:
        raise BadInput(f"{path}: cannot be written ({e.strerror or e})") from e
    finally:
        scratch.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
