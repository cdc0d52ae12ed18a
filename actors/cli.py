"""The command `treeadv`: the commands of the library, and the commands that need Ray or the benchmarks."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from treeadv.cli.main import add_commands
from treeadv.cli.parser import Commands, dispatch, new_parser
from treeadv.command_line import FIELD, local
from treeadv.errors import BadInput
from treeadv.places import check_typed, is_uri
from treeadv.visible import visible

if TYPE_CHECKING:
    from treeadv.config import Config

BENCHMARKS = (
    "context",
    "driver",
    "learner",
    "learning",
    "overlap",
    "queue",
    "ragged",
    "rollout",
    "verifier",
    "weights",
)


def main(argv: Sequence[str] | None = None) -> int:
    parser, commands = new_parser()
    add_all(commands)
    return dispatch(parser, argv)


def add_all(commands: Commands) -> None:
    """Add every command, in the order of `treeadv --help`."""
    _add_train(commands)
    add_commands(commands)
    _add_scale(commands)
    _add_reproduce(commands)
    _add_bench(commands)


def _add_train(commands: Commands) -> None:
    p = commands.add_parser(
        "train",
        help="train a model with the whole pipeline",
        add_help=False,
        description="Train a model from a recipe, or resume a stopped run.",
    )
    p.add_argument(
        "-h", "--help", action=_HelpWithFields, nargs=0, help="show this help and every field of the configuration"
    )
    p.add_argument(
        "--config", type=local, metavar="RECIPE", help="a YAML file, or a recipe of the package such as laptop"
    )
    p.add_argument(
        "--resume",
        metavar="RUN",
        help="resume this run, a folder or a URI in an object store, from its last checkpoint",
    )
    p.add_argument(
        "--resume-or-start", action="store_true", help="with --config: resume the run named run.name if it exists"
    )
    p.add_argument("--local", action="store_true", help="train in this process, without Ray, reproducibly")
    p.add_argument("--dry-run", action="store_true", help="with --config: show data, prompt and memory; start nothing")
    p.add_argument("overrides", nargs="*", metavar=FIELD, help="set a field of the configuration")
    p.set_defaults(call=train)


def train(args: argparse.Namespace) -> int:
    if args.dry_run:
        return _dry_run(args)
    from rich.console import Console
    from rich.text import Text

    from treeadv.checks import check_run
    from treeadv.extensions import require
    from treeadv.launch import launch
    from treeadv.report.progress import Progress, final_table
    from treeadv.tracking import Trackers

    if not args.local:
        require("ray", "treeadv train")

    def check(config: Config) -> None:
        check_run(config, args.local)
        if not args.local:
            from actors.driver.start_check import check_ray  # this import loads Ray, so it comes after the other checks

            check_ray(config)

    run = launch(args.config, args.resume, args.resume_or_start, args.overrides, check)
    folder, config = run.folder, run.config
    console = Console()
    console.print(Text(f"run folder: {visible(str(folder.path))}"), soft_wrap=True)
    # These imports load torch and Ray, so they come after all checks.
    if args.local:
        from treeadv.local.training import train as train_run
    else:
        from actors.driver.supervisor import train as train_run

    trackers = Trackers(config.run.trackers, folder.path, config.model_dump(mode="json"))
    try:
        with Progress(config.run.steps, console, trackers) as progress:
            summary = train_run(run, progress)
    finally:
        trackers.close()
        run.lock.release()
    if summary["steps"]:
        from treeadv.report.run import write_report

        write_report(folder.path)
        folder.store.push()
    final_table(summary, console)
    if summary["early_end"] and summary["steps"] < config.run.steps:
        console.print(f"Ended early: {summary['early_end']}.", soft_wrap=True)
    elif summary["steps"] < config.run.steps:
        console.print(
            f"Stopped before the last step; go on with: treeadv train {'--local ' * args.local}--resume"
            f" {visible(shlex.quote(folder.uri))}",
            soft_wrap=True,
            markup=False,
        )
        # Only Ctrl-C asks for the end of the run. After any other signal the exit code says that the run is not
        # finished, so that Kubernetes starts it again.
        return 0 if summary["stopped_by"] == "SIGINT" else 128 + signal.Signals[summary["stopped_by"]]
    return 0


def _dry_run(args: argparse.Namespace) -> int:
    if args.config is None or args.resume:
        raise BadInput("--dry-run describes a new run: give --config RECIPE, and leave --resume out")
    from treeadv.checks import check_run
    from treeadv.cli.dry_run import describe_run
    from treeadv.launch import read_recipe

    config = read_recipe(args.config, args.overrides)
    check_run(config, args.local)
    if not args.local:
        from actors.driver.start_check import check_machine

        check_machine(config)
    text, fits = describe_run(config, f"{args.config.stem}-TIME")
    print(text)
    return 0 if fits else 1


class _HelpWithFields(argparse.Action):
    """An argparse action that prints the help and all fields of the configuration. It imports the configuration only
    when it is called."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from treeadv.config import describe

        parser.print_help()
        print("\nfields, with their defaults:")
        for key, default, text in describe():
            print(f"  {key} = {default}" + (f"\n      {text}" if text else ""))
        parser.exit()


def _add_scale(commands: Commands) -> None:
    p = commands.add_parser("scale", help="change the number of actors of a running run")
    p.add_argument("run_dir", metavar="RUN")
    p.add_argument("counts", nargs="+", metavar="ROLE=N", help="generator, reward or learner")
    p.set_defaults(call=scale)


def scale(args: argparse.Namespace) -> int:
    from treeadv.storage.run_folder import RunFolder

    check_typed(args.run_dir)
    if is_uri(args.run_dir):
        raise BadInput(f"{args.run_dir}: the driver reads requests from its own disk; give the run folder there")
    counts = {}
    for text in args.counts:
        role, _, number = text.partition("=")
        if role not in ("generator", "reward", "learner") or not number.isdigit() or int(number) < 1:
            raise BadInput(f"{text!r}: write generator=N, reward=N or learner=N with N at least 1")
        counts[role] = int(number)
    folder, config = RunFolder.open(Path(args.run_dir), [])
    bounds = config.scaling
    if bounds.enabled and not bounds.min <= counts.get("generator", bounds.min) <= bounds.max:
        raise BadInput(
            f"generator={counts['generator']}: with scaling.enabled the number of generators stays within"
            f" scaling.min={bounds.min} and scaling.max={bounds.max}"
        )
    folder.request(counts)
    print(f"asked {visible(args.run_dir)} for {', '.join(args.counts)}")
    return 0


def _add_reproduce(commands: Commands) -> None:
    p = commands.add_parser("reproduce", help="take one step of a run again and compare it with its record")
    p.add_argument("run_dir", type=local, metavar="RUN")
    what = p.add_mutually_exclusive_group(required=True)
    what.add_argument("--step", type=int, metavar="N", help="a step of metrics.jsonl; 1 is the first")
    what.add_argument(
        "--batch",
        type=local,
        metavar="FILE.arrow",
        help="a batch that the learner kept because its step was not finite",
    )
    p.set_defaults(call=reproduce)


def reproduce(args: argparse.Namespace) -> int:
    from treeadv.learning.report import NonFinite
    from treeadv.local.reproduce import reproduce_batch, reproduce_step
    from treeadv.replay.history import forests_of_step

    if args.step is not None:
        comparison = reproduce_step(args.run_dir, args.step, forests_of_step)
        print(comparison)
        return 0 if comparison.equal else 1
    try:
        print(visible(str(reproduce_batch(args.run_dir, args.batch, forests_of_step))))
    except NonFinite as fault:
        print(f"treeadv: error: {visible(str(fault))}", file=sys.stderr)
        return 1
    return 0


def _add_bench(commands: Commands) -> None:
    p = commands.add_parser("bench", help="run a benchmark, which prints one JSON object per line")
    p.add_argument("benchmark", choices=BENCHMARKS)
    p.add_argument(
        "arguments",
        nargs=argparse.REMAINDER,
        metavar="...",
        help="its arguments; see treeadv bench BENCHMARK --help",
    )
    p.set_defaults(call=bench)


def bench(args: argparse.Namespace) -> int:
    from importlib import import_module

    import_module(f"actors.benchmarks.{args.benchmark}").main(args.arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
