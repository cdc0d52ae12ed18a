"""`python -m benchmarks.profile`: the share of the model in the CPU time of a whole run.

Runs a recipe and samples the stacks of a generator and a learner with py-spy. Prints one JSON object per role and one
per kind of work outside of the model. Writes ROLE.svg, the flame graph of the role, into `--out`.

A sample counts for the model if its stack has a forward pass, a backward pass or the optimizer. A thread that waits is
not counted. py-spy cannot tell that on every kernel, so the innermost function decides (`WAITS`). `cpu_s` is the CPU
time of the process by the kernel, and `sampled_of_cpu` the sampled time over it. It is above 1 if a thread was ready to
run and had no core. The start of a role (imports, reading the weights) is not sampled: the sampling begins with the
first optimizer step of the run.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import psutil

from actors.benchmarks.lines import print_figures
from treeadv.command_line import local, positive, run_command, tool_parser
from treeadv.errors import BadInput

ROLES = ("Generator", "Learner")
TITLE = re.compile(r">[^<]*py-spy record[^<]*<")  # the command line of py-spy, which has folders of this machine
START = 600.0  # seconds that the first step may take
# A stack belongs to the first entry of which it holds a frame, as py-spy writes it: function (file:line).
MODEL = {
    "backward": ("backward (torch/",),
    "optimizer": ("(torch/optim/", "clip_grad"),
    "forward": ("(transformers/models/", "(torch/nn/modules/"),
}
WAITS = (
    ".select (selectors.py", ".wait (threading.py", "Thread.run (threading.py", "_worker (concurrent/futures/",
    "Worker.main_loop (ray/",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    p = tool_parser("python -m benchmarks.profile", __doc__)
    p.add_argument("--config", type=local, default=Path("deploy/recipes/laptop.yaml"), metavar="RECIPE.yaml")
    p.add_argument("--steps", type=positive, default=20, help="optimizer steps of the run")
    p.add_argument("--rate", type=positive, default=50, help="samples a second")
    p.add_argument("--top", type=positive, default=8, help="kinds of other work that are printed per role")
    p.add_argument("--out", type=local, default=None, metavar="DIR", help="folder for the flame graphs; default: none")
    p.add_argument("--set", nargs="*", default=[], dest="overrides", metavar="section.key=value")
    args = p.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        settings = [f"run.root={root}", "run.name=profiled", f"run.steps={args.steps}", *args.overrides]
        command = [sys.executable, "-m", "actors.cli", "train", "--config", str(args.config), *settings]
        with subprocess.Popen(command, stdout=sys.stderr) as run:
            try:
                seconds = _sample(run, root, args.rate)
            except BaseException:
                run.terminate()
                raise
        if run.returncode:
            raise BadInput(f"the run failed with exit code {run.returncode}; its output is above")
        for role in ROLES:
            _print(role, (root / f"{role}.raw").read_text(), seconds[role], args.rate, args.top)
            if args.out:
                args.out.mkdir(parents=True, exist_ok=True)
                graph = TITLE.sub(f">CPU time of the {role.lower()}<", (root / f"{role}.svg").read_text())
                (args.out / f"{role.lower()}.svg").write_text(graph)


def _sample(run: subprocess.Popen[bytes], root: Path, rate: int) -> dict[str, float]:
    """Sample the roles from the first step to the end of the run. Return the CPU seconds of each role in that time."""
    deadline, metrics = time.monotonic() + START, root / "profiled" / "metrics.jsonl"
    while not (metrics.is_file() and metrics.stat().st_size):
        if run.poll() is not None or time.monotonic() > deadline:
            raise BadInput(f"the run took no step in {START:g} s or ended before; its output is above")
        time.sleep(0.5)
    roles = {role: _process(run.pid, role) for role in ROLES}
    began = {role: _cpu(process) for role, process in roles.items()}
    seconds = dict(began)
    samplers = [
        _sampler(process, rate, kind, root / f"{role}{ending}")
        for role, process in roles.items()
        for kind, ending in (("raw", ".raw"), ("flamegraph", ".svg"))
    ]
    while run.poll() is None:
        for role, process in roles.items():
            with contextlib.suppress(psutil.NoSuchProcess):  # the role has ended
                seconds[role] = _cpu(process)
        time.sleep(0.2)
    if any(sampler.wait(60) for sampler in samplers):
        raise BadInput("py-spy could not sample the roles; allow it to trace processes (root, or CAP_SYS_PTRACE)")
    return {role: seconds[role] - began[role] for role in ROLES}


def _sampler(process: psutil.Process, rate: int, kind: str, out: Path) -> subprocess.Popen[bytes]:
    """Start py-spy on a process. It ends with the process."""
    program = Path(sys.executable).with_name("py-spy")
    options = ["-p", str(process.pid), "-r", str(rate), "-d", "86400", "-f", kind, "-o", str(out)]
    return subprocess.Popen([program, "record", *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _process(driver: int, role: str) -> psutil.Process:
    found = [p for p in psutil.Process(driver).children(recursive=True) if f"ray::{role}" in " ".join(p.cmdline()[:1])]
    if len(found) != 1:
        raise BadInput(f"{len(found)} processes of the role {role}; profile a run with one")
    return found[0]


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _print(role: str, stacks: str, seconds: float, rate: int, top: int) -> None:
    work, other = shares(stacks)
    total = work.total()
    model = sum(work[kind] for kind in MODEL)
    figures = {kind: work[kind] / total for kind in MODEL}
    print_figures(bench="profile", role=role.lower(), model=model / total, **figures, cpu_s=seconds,
                  sampled_of_cpu=total / rate / seconds)  # fmt: skip
    for name, count in other.most_common(top):
        print_figures(bench="profile", role=role.lower(), work=name, share=count / total)


def shares(stacks: str) -> tuple[Counter[str], Counter[str]]:
    """Return the samples of each kind of work, and of each function that is outside of the model, without waits.

    `stacks` has a line per stack, as `py-spy record -f raw` writes it: frames from the outermost, then the number of
    samples. Work outside of the model counts for its innermost function of this project."""
    work: Counter[str] = Counter()
    other: Counter[str] = Counter()
    for line in stacks.splitlines():
        stack, _, count = line.rpartition(" ")
        frames = stack.split(";")
        idle = any(wait in frames[-1] for wait in WAITS)
        if idle or ":" not in frames[-1]:  # a thread that runs no Python has no function
            continue
        kind = next((kind for kind, marks in MODEL.items() if any(mark in stack for mark in marks)), "other")
        work[kind] += int(count)
        if kind == "other":
            own = [frame for frame in frames if "(treeadv/" in frame or "(actors/" in frame]
            other[(own or frames)[-1].rpartition(":")[0] + ")"] += int(count)
    return work, other


if __name__ == "__main__":
    sys.exit(run_command(main))
