"""`python -m benchmarks.check`: compares ratios of the benchmarks with committed baselines.

Each check of `benchmarks/baselines.json` runs `treeadv bench` once and reads one figure: that of the line which has all
fields of `over`, divided by that of the line of `under` if there is one. Both lines come from one run, so the figure
depends little on the machine. A check fails if its figure is worse than the baseline by more than the tolerance, a
share of the baseline. The exit code is the number of failed checks.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from treeadv.command_line import run_command, tool_parser
from treeadv.errors import BadInput
from treeadv.jsonl import JsonObject
from treeadv.section import faults

BASELINES = Path(__file__).with_name("baselines.json")
Line = JsonObject


class Check(BaseModel):
    """One ratio and its baseline."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str
    command: tuple[str, ...] = Field(description="arguments of treeadv bench")
    over: Line
    under: Line | None = None
    figure: str
    better: Literal["higher", "lower"]
    baseline: float = Field(gt=0)
    tolerance: float = Field(gt=0, lt=1)

    @property
    def limit(self) -> float:
        """Return the worst figure that passes."""
        return self.baseline * (1 - self.tolerance if self.better == "higher" else 1 + self.tolerance)

    def value(self, lines: list[Line]) -> float:
        """Return the figure from the lines of a benchmark. Raises `BadInput` if not exactly one line matches."""
        over = self._read(lines, self.over)
        return over if self.under is None else over / self._read(lines, self.under)

    def passes(self, value: float) -> bool:
        """Return whether `value` is within the tolerance. The result is false for NaN."""
        return value >= self.limit if self.better == "higher" else value <= self.limit

    def _read(self, lines: list[Line], fields: Line) -> float:
        found = [x for x in lines if fields.items() <= x.items()]
        if len(found) != 1 or self.figure not in found[0]:
            raise BadInput(
                f"{self.name}: {len(found)} lines of the benchmark have {fields} with {self.figure}, but one is needed"
            )
        return float(found[0][self.figure])


def load_checks(path: Path = BASELINES) -> list[Check]:
    """Read the checks. Raises `BadInput` for a faulty file."""
    try:
        return TypeAdapter(list[Check]).validate_json(path.read_text())
    except ValidationError as e:
        raise BadInput(f"{path}: {faults(e)}") from e


def measure(check: Check) -> float:
    """Run the benchmark of a check and return its figure."""
    command = [sys.executable, "-m", "actors.cli", "bench", *check.command, "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it wrote nothing"])[-1]
        raise BadInput(f"{check.name}: treeadv bench {' '.join(check.command)} failed: {last}")
    return check.value([json.loads(x) for x in done.stdout.splitlines() if x.startswith("{")])


def main(argv: Sequence[str] | None = None) -> int:
    p = tool_parser("python -m benchmarks.check", __doc__.splitlines()[0].split(": ", 1)[1])
    p.add_argument("names", nargs="*", metavar="NAME", help="only the checks whose name contains one of these texts")
    args = p.parse_args(argv)
    checks = [c for c in load_checks() if not args.names or any(n in c.name for n in args.names)]
    if not checks:
        raise BadInput(f"no check has {' or '.join(args.names)} in its name ({BASELINES})")
    failed = 0
    for check in checks:
        value = measure(check)
        passes = check.passes(value)
        failed += not passes
        print(f"{'ok  ' if passes else 'FAIL'} {value:8.3f}  baseline {check.baseline:.3f}, worst {check.limit:.3f}"
              f" ({check.better} is better)  {check.name}", flush=True)  # fmt: skip
    return failed


if __name__ == "__main__":
    sys.exit(run_command(main))
