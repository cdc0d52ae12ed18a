"""Empties a pod before it stops. The preStop hook of a pod (helm/treeadv) runs this before Kubernetes sends SIGTERM.

    python -m actors.driver.drain node --seconds 170
        on a worker node: take no new actors and wait until the actors of the node have ended
    python -m actors.driver.drain driver --seconds 110
        on the head node: end the run after the current step, with a checkpoint

A worker node only announces that it drains. The driver reads this with
`actors.driver.nodes.draining_nodes` and moves the actors to other
nodes.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence

import psutil
import ray
from ray._private.state import actors
from ray.core.generated.autoscaler_pb2 import DrainNodeReason  # type: ignore[attr-defined]

from actors.driver.gcs import gcs
from treeadv.command_line import run_command, tool_parser

POLL_SECONDS = 1.0


def announce(node: str, seconds: float) -> None:
    """Tell Ray that `node` (hex id) stops in `seconds`, so that Ray places no new actor on it. Raises RuntimeError when
    Ray refuses."""
    deadline = int((time.time() + seconds) * 1000)
    accepted, why = gcs().drain_node(
        node, DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION, "the pod is being stopped", deadline
    )
    if not accepted:
        raise RuntimeError(f"node {node} cannot be drained: {why}")


def actors_on(node: str) -> list[str]:
    """Return the classes of the actors that are alive on `node`."""
    return [a["ActorClassName"] for a in actors().values() if a["State"] == "ALIVE" and a["Address"]["NodeID"] == node]


def wait_until(condition: Callable[[], bool], seconds: float, sleep: Callable[[float], None] = time.sleep) -> bool:
    """Test a condition every POLL_SECONDS. Returns whether it holds within `seconds`."""
    for _ in range(int(seconds / POLL_SECONDS)):
        if condition():
            return True
        sleep(POLL_SECONDS)
    return condition()


def find_drivers(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Return the processes that run `treeadv train`, directly or through an interpreter."""
    found = []
    for process in processes:
        try:
            words = process.cmdline()
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue  # the process has ended
        at = next((i for i, word in enumerate(words[:2]) if os.path.basename(word) == "treeadv"), None)
        if at is not None and words[at + 1 : at + 2] == ["train"]:
            found.append(process)
    return found


def interrupt(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Ask each process to end after its current step. Returns the processes that are still alive after `seconds`."""
    for process in processes:
        process.send_signal(signal.SIGTERM)
    return psutil.wait_procs(processes, timeout=seconds)[1]


def parse_arguments(line: list[str] | None = None) -> argparse.Namespace:
    parser = tool_parser("python -m actors.driver.drain", __doc__)
    parser.add_argument("what", choices=["node", "driver"])
    parser.add_argument("--seconds", type=float, required=True, help="time until the pod is killed")
    return parser.parse_args(line)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments()
    if args.what == "driver":
        left = interrupt(find_drivers(psutil.process_iter()), args.seconds)
        raise SystemExit(f"still running: {left}" if left else 0)
    ray.init(address="auto", log_to_driver=False)
    node = ray.get_runtime_context().get_node_id()
    announce(node, args.seconds)
    if not wait_until(lambda: not actors_on(node), args.seconds):
        raise SystemExit(f"still on this node after {args.seconds:g} s: {', '.join(actors_on(node))}")


if __name__ == "__main__":
    sys.exit(run_command(main))
