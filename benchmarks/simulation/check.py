"""`python -m benchmarks.simulation.check`: compares real runs with their simulation.

It prints one JSON object per line.

For each number of generators it trains a small model with the whole pipeline: real driver, queue, reward actors and
learner. Only the engine is without a model: it draws leaves with the lengths and at the speed of the simulation
(benchmarks/simulation/timed_engine.py). The simulation gets the times of the learner, of the publication and of the
checkpoint from the records of the same run, and the times of the queue and the driver from --queue and --driver.

    check  forests/s and the share of the time in which the learner waits, real and simulated, and `error`, the
           simulated rate over the real one minus 1
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from actors.benchmarks.lines import print_figures
from benchmarks.simulation.figures import figures
from benchmarks.simulation.model import Simulation
from benchmarks.simulation.service import Lengths, Service, measured
from tests import tiny
from treeadv.command_line import run_command, tool_parser
from treeadv.errors import BadInput
from treeadv.storage.run_folder import RunFolder


def main(argv: Sequence[str] | None = None) -> None:
    p = tool_parser("python -m benchmarks.simulation.check", __doc__)
    p.add_argument("--generators", type=int, nargs="+", default=[1, 2])
    p.add_argument("--steps", type=int, default=30)
    p.add_argument("--skip", type=int, default=5, help="first steps that are not counted")
    p.add_argument("--step", type=float, default=0.1, help="seconds of a step of the engine")
    p.add_argument("--row", type=float, default=0.005, help="further seconds of a step for each running branch")
    p.add_argument("--median", type=float, default=20.0, help="median length of an answer in tokens")
    p.add_argument("--queue", type=float, default=0.0015, help="seconds of a call of the queue")
    p.add_argument("--driver", type=float, default=0.001, help="seconds of the driver for a forest")
    args = p.parse_args(argv)
    if args.skip >= args.steps:
        raise BadInput(f"--skip {args.skip}: take fewer than the {args.steps} steps")
    for n in args.generators:
        with tempfile.TemporaryDirectory() as folder:
            print_figures(bench="simulation", way="check", generators=n, **compare(train(Path(folder), n, args), args))


def train(folder: Path, generators: int, args: argparse.Namespace) -> Path:
    """Train a tiny model and return the folder of the run."""
    options = {"step": args.step, "row": args.row, "median": args.median}
    recipe = {
        "run": {"root": str(folder), "name": "run", "steps": args.steps, "checkpoint_every": args.steps},
        "model": {"path": str(tiny.save(folder / "model"))},
        "task": {"source": "reasoning-gym", "verifier": "exact", "families": [{"name": "chain_sum"}]},
        "sampling": {"leaves": 4, "max_tokens": 200},
        "generator": {
            "count": generators, "forests": 2, "rows": 16, "cpus": 0.1,
            "engine": "benchmarks.simulation.timed_engine:TimedEngine", "engine_options": options,
        },
        "queue": {"max_staleness": 1},
        "learner": {"preset": "grpo", "forests_per_step": 6, "dtype": "float32", "threads": 1, "cpus": 0.5, "kl": 0.1},
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "-m", "actors.cli", "train", "--config", str(folder / "recipe.yaml")]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return folder / "run"


def compare(run: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Return the rates and waits of a run and of its simulation."""
    folder, config = RunFolder.open(run, [])
    records = folder.records()
    first, last = records[args.skip - 1] if args.skip else {"elapsed_s": 0.0}, records[-1]
    seconds = last["elapsed_s"] - first["elapsed_s"]
    counted = records[args.skip :]
    real = len(counted) * config.learner.forests_per_step / seconds
    times = measured(run, 0.5, args.skip) | {
        "step": args.step, "row": args.row, "queue": args.queue, "driver": args.driver,
    }  # fmt: skip
    lengths = Lengths(seed=config.run.seed, median=args.median, longest=config.sampling.max_tokens)
    found = figures(Simulation(config, Service(**times), lengths).run(), args.skip)
    return {
        "real_forests_per_s": real,
        "forests_per_s": found["forests_per_s"],
        "error": found["forests_per_s"] / real - 1,
        "real_learner_wait": sum(r["seconds"]["wait"] for r in counted) / seconds,
        "learner_wait": found["learner_wait"],
        "real_stale": last["dropped"].get("stale", 0),
        "stale_share": found["stale_share"],
        "saturated": found["saturated"],
        "learner_s": times["learner_token"] * (last["tokens_trained"] - first.get("tokens_trained", 0)) / len(counted),
        "publish_s": times["publish"],
    }


if __name__ == "__main__":
    sys.exit(run_command(main))
