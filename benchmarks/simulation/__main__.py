"""`python -m benchmarks.simulation`: simulates a run with 1 to 1,000 generators. It prints one JSON object per line.

The decisions are those of the code of a run: the replay queue with its slots, staleness bound and leases, the number
of forests in flight, the routing of trees and the autoscaler. Only time is simulated (benchmarks/simulation/model.py).
The recipe --config sets the sizes. The service times come from a finished run (--run) or from --times.

    run        one number of generators. `saturated` names the part that limits the run: queue, driver, reward, learner,
               generators, or the slots of the staleness bound. `trained_length` is the mean length of the trained
               answers over the mean length of all prompts' first answers. `stale_by_length` is the share of attempts
               dropped as stale, by decile of the longest answer; `untrained_by_length` is the share of prompts that
               the run never trained, of the first half of its draws
    knee       the smallest number of generators with 95 % of the largest rate
    autoscaler with --autoscale: the same recipe from each number of generators with the autoscaler
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from actors.benchmarks.lines import print_figures
from benchmarks.simulation.figures import figures, knee, scaling_figures
from benchmarks.simulation.model import Simulation
from benchmarks.simulation.picture import draw
from benchmarks.simulation.service import Lengths, Service, measured
from treeadv.command_line import FIELD, run_command, tool_parser
from treeadv.config import Config, load
from treeadv.errors import BadInput

TIMES = tuple(f.name for f in fields(Service))


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    logging.getLogger("treeadv.replay").setLevel(logging.ERROR)  # each stale forest would give a warning
    overrides = [f"run.steps={args.steps}", f"run.seed={args.seed}", *args.overrides]
    times: dict[str, float] = {}
    if args.run:
        times = measured(args.run, args.row_share, args.run_skip)
    times |= given_times(args.times)
    config = load(Path(args.config), overrides)
    service = Service(**times)
    lengths = Lengths(
        seed=args.seed, median=args.median, longest=config.sampling.max_tokens,
        sigma_prompt=args.spread[0], sigma_answer=args.spread[1],
    )  # fmt: skip
    if args.skip >= config.run.steps:
        raise BadInput(f"--skip {args.skip}: take fewer than the {config.run.steps} steps")
    print_figures(bench="simulation", way="service", **{n: t for n, t in times.items() if t}, median=args.median)
    lines = [one(config, n, service, lengths, args) for n in args.generators]
    if not args.autoscale:
        reached = knee([(x["generators"], x["forests_per_s"]) for x in lines])
        print_figures(bench="simulation", way="knee", generators=reached)
        if args.picture:
            args.picture.write_text(draw(lines))


def parser() -> argparse.ArgumentParser:
    p = tool_parser("python -m benchmarks.simulation", __doc__)
    p.add_argument("--config", default="deploy/recipes/laptop.yaml", metavar="RECIPE")
    p.add_argument("--set", nargs="*", default=[], dest="overrides", metavar=FIELD)
    p.add_argument("--generators", type=int, nargs="+", default=[1, 2, 3, 4, 6, 8, 16, 32, 64, 125, 250, 500, 1000])
    p.add_argument("--steps", type=int, default=60)
    p.add_argument("--skip", type=int, default=10, help="first steps that are not counted")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--run", type=Path, metavar="RUN", help="a finished run, whose service times are used")
    p.add_argument("--run-skip", type=int, default=2, metavar="N", help="--run: first steps that are not counted")
    p.add_argument(
        "--row-share", type=float, default=0.5, help="--run: share of a full engine step that grows with the rows"
    )
    p.add_argument("--times", nargs="*", default=[], metavar="NAME=SECONDS", help=f"service times: {', '.join(TIMES)}")
    p.add_argument("--median", type=float, default=20.0, help="median length of an answer in tokens")
    p.add_argument(
        "--spread", type=float, nargs=2, default=[0.8, 0.5], metavar=("PROMPT", "ANSWER"),
        help="standard deviations of the logarithm of the length, between prompts and within a prompt",
    )  # fmt: skip
    p.add_argument("--sharing", type=float, default=0.0, help="share of its tokens that the leaves of a forest share")
    p.add_argument("--servers", type=int, default=1, help="servers of one generator, among which trees are routed")
    p.add_argument("--autoscale", action="store_true", help="let the autoscaler change the number of generators")
    p.add_argument("--picture", type=Path, metavar="FILE.svg", help="write the curves of the lines `run`")
    return p


def given_times(texts: Sequence[str]) -> dict[str, float]:
    """Read NAME=SECONDS. Raises `BadInput` for an unknown name or a value that is no time."""
    times = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            times[name] = float(value)
        except ValueError:
            times[name] = -1.0
        if name not in TIMES or not times[name] >= 0:
            raise BadInput(f"--times {text}: write NAME=SECONDS with a name of {', '.join(TIMES)}")
    return times


def one(config: Config, n: int, service: Service, lengths: Lengths, args: argparse.Namespace) -> dict[str, Any]:
    """Simulate one number of generators, print its line and return it."""
    count = config.generator.model_copy(update={"count": n})
    scaling = config.scaling.model_copy(update={"enabled": args.autoscale})
    changed = config.model_copy(update={"generator": count, "scaling": scaling})
    done = Simulation(changed, service, lengths, sharing=args.sharing, servers=args.servers).run()
    found = figures(done, args.skip)
    line = {"bench": "simulation", "way": "autoscaler" if args.autoscale else "run", "generators": n, **found}
    if args.autoscale:
        line |= scaling_figures(done)
    print_figures(**line)
    return line


if __name__ == "__main__":
    sys.exit(run_command(main))
