"""Tests whether a recipe learns: trains with several seeds and compares the mean rewards of the first and the last
fifth of the steps."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from actors.benchmarks.options import bench_parser
from treeadv.command_line import local

KEYS = (
    "elapsed_s",
    "reward_first_fifth",
    "reward_last_fifth",
    "tokens_generated",
    "tokens_trained",
    "sharing_trained",
    "staleness_max",
)


def main(argv: list[str]) -> None:
    parser = bench_parser("treeadv bench learning", __doc__)
    parser.add_argument("--config", type=local, default=Path("deploy/recipes/laptop.yaml"), metavar="RECIPE.yaml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", nargs="*", default=[], dest="overrides", metavar="section.key=value")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as root:
        for seed in args.seeds:
            run = [f"run.root={root}", f"run.name=seed-{seed}", f"run.seed={seed}", *args.overrides]
            command = [sys.executable, "-m", "actors.cli", "train", "--config", str(args.config), *run]
            subprocess.run(command, check=True, stdout=sys.stderr)
            summary = json.loads((Path(root) / f"seed-{seed}" / "summary.json").read_text())
            gain = summary["reward_last_fifth"] - summary["reward_first_fifth"]
            print(
                json.dumps(
                    {"recipe": args.config.name, "seed": seed, "learns": gain > 0, **{k: summary[k] for k in KEYS}}
                ),
                flush=True,
            )
