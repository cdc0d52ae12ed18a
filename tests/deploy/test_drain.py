"""A pod that is to stop leaves in order: Ray sends it nothing new, and its driver ends with a checkpoint."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

from actors import drain


@pytest.fixture
def two_nodes() -> Iterator[Cluster]:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    cluster.add_node(num_cpus=1, resources={"generator_slot": 2})
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@ray.remote(num_cpus=0, resources={"generator_slot": 1})
class Resident:
    def node(self) -> str:
        return ray.get_runtime_context().get_node_id()


def test_a_leaving_node_is_seen_gets_no_new_actor_and_is_empty_when_its_actors_have_ended(two_nodes: Cluster) -> None:
    actor = Resident.remote()
    node = ray.get(actor.node.remote())
    assert node not in drain.leaving()
    assert drain.residents(node) == ["Resident"]
    drain.announce(node, 60.0)
    assert node in drain.leaving()
    refused = Resident.remote().node.remote()
    assert ray.wait([refused], timeout=3.0)[0] == []
    assert not drain.wait(lambda: not drain.residents(node), 1.0)
    ray.kill(actor)
    assert drain.wait(lambda: not drain.residents(node), 10.0)


def test_waiting_looks_once_more_at_the_end_and_then_gives_up() -> None:
    naps: list[float] = []
    assert not drain.wait(lambda: False, 3.0, naps.append)
    assert naps == [1.0, 1.0, 1.0]
    assert drain.wait(lambda: len(naps) == 5, 2.0, naps.append)


PROGRAM = """import signal, sys, time
signal.signal(signal.SIGTERM, {handler})
print("ready", flush=True)
time.sleep(60)
"""


def start(folder: Path, handler: str, *words: str) -> psutil.Process:
    script = folder / "treeadv"
    script.write_text(PROGRAM.format(handler=handler))
    child = subprocess.Popen([sys.executable, str(script), *words], stdout=subprocess.PIPE)
    assert child.stdout and child.stdout.readline() == b"ready\n"
    return psutil.Process(child.pid)


def test_the_driver_is_found_among_processes_and_ends_on_the_signal(tmp_path: Path) -> None:
    train = start(tmp_path, "lambda *_: sys.exit(0)", "train", "--config", "x")
    other = start(tmp_path, "lambda *_: sys.exit(0)", "show", "train")
    try:
        assert drain.drivers([psutil.Process(), train, other]) == [train]
        assert drain.stop([train], 10.0) == []
        assert drain.drivers([train]) == []
    finally:
        other.kill()


def test_a_driver_that_does_not_end_in_time_is_named(tmp_path: Path) -> None:
    stubborn = start(tmp_path, "signal.SIG_IGN", "train")
    began = time.monotonic()
    try:
        assert drain.stop([stubborn], 1.0) == [stubborn]
        assert time.monotonic() - began < 5
    finally:
        stubborn.kill()
