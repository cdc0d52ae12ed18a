"""`python -m benchmarks.study_forests DIR`: describes the forests that the runs of a study were trained on.

The command reads the payload files of the runs. It prints one JSON object for each row of the study and each half of
the runs, with the figures of `treeadv.study.forests` and two figures on the bias of advantages:

  prefix_reward   correlation of a segment's log-probability per token (from the root) with the mean reward of its
                  leaves, both minus the mean of their forest; 0 means that likely prefixes get no higher reward
  own_leaves      <A - A', A - A'> / <A, A> over tokens. A is V(s) minus the mean of the forest, which contains the
                  segment's own leaves. A' is V(s) minus the mean of the leaves outside the segment, which has no bias
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence

import numpy as np

from treeadv.command_line import local, run_command, tool_parser
from treeadv.errors import BadInput
from treeadv.forest import Forest
from treeadv.learning.advantage import advantages, path_sum, values
from treeadv.presets import AdvantageSpec
from treeadv.replay.history import forests_of_step
from treeadv.study.forests import forest_figures
from treeadv.study.running import status
from treeadv.study.spec import load_study

FOREST_MEAN = AdvantageSpec(scale="none")
OUTSIDE = AdvantageSpec(scale="none", baseline="leave_subtree_out")


def bias_figures(forests: Iterable[Forest]) -> dict[str, float | None]:
    """Return `prefix_reward` and `own_leaves` over forests with mixed rewards and two or more trees, or None."""
    likely, good, apart, size = [], [], 0.0, 0.0
    for f in forests:
        if f.trees < 2 or np.ptp(f.reward) == 0:
            continue
        logprob = path_sum(f, np.add.reduceat(f.logprob.astype(float), f.start[:-1]))
        V = values(f, FOREST_MEAN)
        depth = f.offset + f.lengths
        per_token = logprob / depth  # segments end at different depths
        likely += (per_token - per_token.mean()).tolist()
        good += (V - V.mean()).tolist()
        A, B = advantages(f, FOREST_MEAN)[0], advantages(f, OUTSIDE)[0]
        apart += float(f.lengths @ (A - B) ** 2)
        size += float(f.lengths @ A**2)
    if not likely or not size:
        return {"prefix_reward": None, "own_leaves": None}
    return {"prefix_reward": float(np.corrcoef(likely, good)[0, 1]), "own_leaves": apart / size}


def main(argv: Sequence[str] | None = None) -> None:
    p = tool_parser("python -m benchmarks.study_forests", __doc__)
    p.add_argument("dir", type=local, metavar="DIR", help="folder of a study")
    args = p.parse_args(argv)
    if not (args.dir / "study.yaml").is_file():
        raise BadInput(f"{args.dir}: not the folder of a study (no study.yaml); treeadv study run makes one")
    study = load_study(args.dir / "study.yaml")
    for name in study.rows:
        done = [c for c in study.cells if c.row == name and status(args.dir, c) == "done"]
        runs = [args.dir / "cells" / c.folder for c in done]
        last = min((json.loads((r / "cell.json").read_text())["steps"] for r in runs), default=0)
        for half, steps in (("first", range(1, last // 2 + 1)), ("second", range(last // 2 + 1, last + 1))):
            forests = [f for r in runs for s in steps for f in forests_of_step(str(r / "run"), s)]
            if forests:
                figures = {**forest_figures(forests), **bias_figures(forests)}
                kept = {k: round(v, 4) if isinstance(v, float) else v for k, v in figures.items()}
                print(json.dumps({"row": name, "half": half, "seeds": len(runs), **kept}), flush=True)


if __name__ == "__main__":
    sys.exit(run_command(main))
