"""`treeadv bench overlap`: measures how far generation and training overlap. It prints one JSON object per line.

For each --dtypes it trains --steps steps of a recipe at each --staleness, with one thread in each role. The runs do
nearly the same work: the learning rate is near 0, so the policy does not change, and a verifier grades by a checksum of
the text, so almost every forest has a gradient. Staleness 0 runs the roles one after the other. In the same run it
measures what the machine allows: one process takes learner steps and one draws tokens, first alone and then side by
side.

    run      one staleness: seconds and tokens of a step, seconds of a trained token, `learner_wait` and
             `generator_idle` as shares of the time. `learner_s` and `generator_s` are the seconds of a step that each
             role works. The first --skip steps are not counted
    machine  `learner_slowdown` and `generator_slowdown`: the time of a role's model work side by side over its time
             alone; 1 means that the roles share nothing
    overlap  `async_over_sync`: seconds of a trained token at staleness 0 over those at the given staleness.
             `ceiling`: (learner_s + generator_s) over the time for both at once, with the seconds of a step at
             staleness 0. Both roles work side by side, each slower by its slowdown, until one has ended; the other
             then works alone. `of_ceiling` is the ratio of the two. `balance` is learner_s / generator_s; 1 is needed
             for a ceiling of 2
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from actors.benchmarks.lines import print_figures
from actors.benchmarks.options import model_parser
from actors.benchmarks.overlap_roles import ROLES, Role
from treeadv.command_line import above_zero
from treeadv.data import model_folder as models
from treeadv.errors import BadInput
from treeadv.jsonl import JsonObject

WORK = ("log_probs", "forward_backward", "optimizer")  # phases of a step in which the learner's model computes


def main(argv: list[str]) -> None:
    p = model_parser("treeadv bench overlap", __doc__)
    p.add_argument("--config", default="deploy/recipes/laptop.yaml", metavar="RECIPE")
    p.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    p.add_argument("--staleness", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--steps", type=int, default=10)
    p.add_argument("--skip", type=int, default=3, help="first steps that are not counted")
    p.add_argument("--seconds", type=above_zero, default=15.0, help="duration of each measurement of the machine")
    p.add_argument("--set", nargs="*", default=[], dest="overrides", metavar="section.key=value")
    args = p.parse_args(argv)
    if 0 not in args.staleness:
        raise BadInput(f"--staleness {args.staleness}: add 0, which the others are compared with")
    if args.steps <= args.skip:
        raise BadInput(f"--steps {args.steps}: take more than the --skip {args.skip} steps that are not counted")
    for dtype in args.dtypes:
        _measure(dtype, args)


def _measure(dtype: str, args: argparse.Namespace) -> None:
    machine = slowdowns(str(models.resolve(args.model, args.cache)), dtype, args.seconds)
    print_figures(bench="overlap", way="machine", dtype=dtype, **machine)
    runs: dict[int, dict[str, float]] = {}
    for staleness in args.staleness:
        runs[staleness] = shares(_train(dtype, staleness, args), args.skip)
        print_figures(bench="overlap", way="run", dtype=dtype, staleness=staleness, **runs[staleness])
    for staleness in args.staleness:
        if staleness:
            compared = compare(runs[0], runs[staleness], machine)
            print_figures(bench="overlap", way="overlap", dtype=dtype, staleness=staleness, **compared)


def _train(dtype: str, staleness: int, args: argparse.Namespace) -> list[JsonObject]:
    """Train with the whole pipeline and return the records of its steps."""
    with tempfile.TemporaryDirectory() as root:
        fields = [
            f"run.root={root}", "run.name=overlap", f"run.steps={args.steps}", f"run.checkpoint_every={args.steps}",
            f"model.path={args.model}", f"model.cache={args.cache}", f"queue.max_staleness={staleness}",
            f"generator.dtype={dtype}", f"learner.dtype={dtype}", "generator.threads=1", "learner.threads=1",
            "learner.lr=1e-9", "task.verifier=actors.benchmarks.coin:coin",
        ]  # fmt: skip
        command = [sys.executable, "-m", "actors.cli", "train", "--config", args.config, *fields, *args.overrides]
        subprocess.run(command, check=True, stdout=sys.stderr)
        return [json.loads(line) for line in (Path(root) / "overlap" / "metrics.jsonl").read_text().splitlines()]


def shares(records: list[JsonObject], skip: int) -> dict[str, float]:
    """Return the means over the steps after the first `skip` steps."""
    before, counted = records[skip - 1] if skip else None, records[skip:]
    seconds = counted[-1]["elapsed_s"] - (before["elapsed_s"] if before else 0.0)
    tokens = counted[-1]["tokens_trained"] - (before["tokens_trained"] if before else 0)
    steps = len(counted)

    def total(*names: str) -> float:
        return sum(float(r["seconds"].get(name, 0.0)) for r in counted for name in names)

    busy = sum(float(r["generator_busy_s"]) for r in counted)
    return {
        "step_s": seconds / steps,
        "tokens": tokens / steps,
        "token_s": seconds / tokens,
        "learner_wait": total("wait") / seconds,
        "publish": total("publish") / seconds,
        "generator_idle": 1 - busy / seconds,
        "learner_s": total(*WORK) / steps,
        "generator_s": busy / steps,
    }


def compare(sync: dict[str, float], run: dict[str, float], machine: dict[str, float]) -> dict[str, float]:
    """Compare a run with the run at staleness 0 and with what the machine allows."""
    learner, generator = sync["learner_s"], sync["generator_s"]
    slow = [max(1.0, machine[f"{role}_slowdown"]) for role in ROLES]  # a speed-up is an error of the measurement
    together = min(learner * slow[0], generator * slow[1])
    both = together + max(learner - together / slow[0], generator - together / slow[1])
    gain, ceiling = sync["token_s"] / run["token_s"], (learner + generator) / both
    return {
        "async_over_sync": gain,
        "ceiling": ceiling,
        "of_ceiling": gain / ceiling,
        "balance": learner / generator,
    }


def slowdowns(model: str, dtype: str, seconds: float) -> dict[str, float]:
    """Run the model work of both roles for `seconds`, each alone and then side by side."""
    started: list[Role] = []
    try:
        for name in ROLES:
            started.append(Role(name, model, dtype))
        alone = {}
        for role in started:
            role.begin(seconds)
            alone[role.name] = role.rate()
        for role in started:
            role.begin(seconds)
        together = {role.name: role.rate() for role in started}
    finally:
        for role in started:
            role.close()
    figures: dict[str, float] = {}
    for name in ROLES:
        figures |= {f"{name}_alone": alone[name], f"{name}_together": together[name]}
        figures[f"{name}_slowdown"] = alone[name] / together[name]
    return figures
