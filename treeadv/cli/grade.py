"""The command `treeadv grade`, which grades a file of answers."""

from __future__ import annotations

import argparse
import json
import math
from contextlib import nullcontext
from dataclasses import asdict

from treeadv.cli.files import replaced
from treeadv.cli.parser import Commands, add_command
from treeadv.command_line import local, output, positive
from treeadv.errors import BadInput, RunFailed


def add(commands: Commands) -> None:
    p = add_command(commands, "grade", grade, "verdicts for a JSONL file of problem, answer and response")
    p.add_argument("file", type=local, metavar="FILE.jsonl")
    p.add_argument("--verifier", default="math", help="a verifier as in task.verifier (default math)")
    p.add_argument(
        "--normaliser",
        default="hashes",
        metavar="NAME",
        help="finds the gold answer in the answer, as task.normaliser does: hashes (the text after ####, the default),"
        " boxed, none or module:Name",
    )
    p.add_argument("--workers", type=positive, default=2, metavar="N", help="verifier processes (default 2)")
    p.add_argument("--timeout", type=float, default=5.0, metavar="SECONDS", help="limit of one answer (default 5)")
    p.add_argument(
        "--out", type=output, metavar="FILE.jsonl", help="write the lines with verdict, reward and detail here"
    )
    p.add_argument("--json", action="store_true", help="print JSON")


def grade(args: argparse.Namespace) -> int:
    from treeadv.evaluation.answer_file import grade_file

    if not 0 < args.timeout < math.inf:
        raise BadInput(f"--timeout {args.timeout:g}: a limit in seconds must be a number above 0")
    with replaced(args.out) if args.out else nullcontext() as scratch:
        summary = grade_file(args.file, args.verifier, args.workers, args.timeout, scratch, args.normaliser)
    if args.json:
        print(json.dumps(asdict(summary), indent=2))
    else:
        verdicts = ", ".join(f"{name} {n}" for name, n in summary.verdicts.items())
        mean = "no answer was judged" if summary.reward_mean is None else f"mean reward {summary.reward_mean:.3f}"
        print(f"{summary.answers} answers in {summary.seconds:.1f} s: {verdicts}; {mean}")
    if 2 * summary.failures > summary.answers:
        raise RunFailed(
            f"the verifier failed on {summary.failures} of {summary.answers} answers; the last failure:"
            f" {summary.last_failure}"
        )
    return 0
