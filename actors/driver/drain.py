"""Leave in order. The preStop hook of a pod (helm/treeadv) calls this before Kubernetes sends SIGTERM.

    python -m actors.driver.drain node --seconds 170      on a worker: take no new actors, wait until those here have ended
    python -m actors.driver.drain driver --seconds 110    on the head: end the run after the step in hand, with a checkpoint

A worker only announces that it leaves; the driver sees it in `leaving()` and retires what runs there.
"""

from __future__ import annotations

import argparse
import os
import signal
import time
from collections.abc import Callable, Iterable

import psutil
import ray
from ray._private.state import actors
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.core.generated.autoscaler_pb2 import DrainNodeReason  # type: ignore[attr-defined]

POLL = 1.0  # seconds


def leaving() -> frozenset[str]:
    """Ids of the nodes that were told to leave, by this module or by Ray's autoscaler. Needs a connected driver."""
    return frozenset(_gcs().get_draining_nodes(timeout=5))


def announce(node: str, seconds: float) -> None:
    """Tell the cluster that `node` (hex id) goes away in `seconds`: Ray places nothing new there. RuntimeError when refused."""
    deadline = int((time.time() + seconds) * 1000)
    accepted, why = _gcs().drain_node(node, DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION, "the pod is being stopped", deadline)
    if not accepted:
        raise RuntimeError(f"node {node} may not leave: {why}")


def residents(node: str) -> list[str]:
    """Classes of the actors that still live on `node`."""
    return [a["ActorClassName"] for a in actors().values() if a["State"] == "ALIVE" and a["Address"]["NodeID"] == node]


def homes() -> dict[str, str]:
    """Actor id (hex) to the id of the node that the actor lives on."""
    return {actor: a["Address"]["NodeID"] for actor, a in actors().items()}


def wait(until: Callable[[], bool], seconds: float, sleep: Callable[[float], None] = time.sleep) -> bool:
    """Whether `until` came true within `seconds`, looked at every POLL."""
    for _ in range(int(seconds / POLL)):
        if until():
            return True
        sleep(POLL)
    return until()


def drivers(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those that are `treeadv train`, also under an interpreter."""
    found = []
    for process in processes:
        try:
            words = process.cmdline()
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue  # ended while we looked
        at = next((i for i, word in enumerate(words[:2]) if os.path.basename(word) == "treeadv"), None)
        if at is not None and words[at + 1 : at + 2] == ["train"]:
            found.append(process)
    return found


def stop(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Ask each to end after its step in hand; those that live on after `seconds` are returned."""
    for process in processes:
        process.send_signal(signal.SIGTERM)
    return psutil.wait_procs(processes, timeout=seconds)[1]


def arguments(line: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["node", "driver"])
    parser.add_argument("--seconds", type=float, required=True, help="time that is left")
    return parser.parse_args(line)


def main() -> None:
    args = arguments()
    if args.what == "driver":
        left = stop(drivers(psutil.process_iter()), args.seconds)
        raise SystemExit(f"still running: {left}" if left else 0)
    ray.init(address="auto", log_to_driver=False)
    node = ray.get_runtime_context().get_node_id()
    announce(node, args.seconds)
    if not wait(lambda: not residents(node), args.seconds):
        raise SystemExit(f"still here after {args.seconds:g} s: {', '.join(residents(node))}")


def _gcs() -> GcsClient:
    return GcsClient(address=ray.get_runtime_context().gcs_address)


if __name__ == "__main__":
    main()
