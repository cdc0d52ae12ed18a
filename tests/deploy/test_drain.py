"""Tests the drain of a pod: Ray places no new actor on its node, and its driver ends with a checkpoint."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray
from ray._private.state import actors
from ray.cluster_utils import Cluster

from actors.driver import drain
from actors.driver.nodes import draining_nodes
from tests.running import LIMIT, recipe, sound, start, steps, wait_for
from treeadv.storage.run_folder import RunFolder


@pytest.fixture
def two_nodes() -> Iterator[Cluster]:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    cluster.add_node(num_cpus=1, resources={"generator_slot": 2})
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.slow
def test_learner_on_a_draining_node_moves_to_another(two_nodes: Cluster, tiny_model: Path, tmp_path: Path) -> None:
    two_nodes.add_node(num_cpus=0, resources={"learner_slot": 1})
    two_nodes.add_node(num_cpus=0, resources={"learner_slot": 1})
    learner = {"forests_per_step": 3, "threads": 1, "dtype": "float32", "cpus": 0, "slot": "learner_slot"}
    file = recipe(
        tmp_path,
        tiny_model,
        run__steps=10**6,
        run__checkpoint_every=10**6,
        learner=learner,
        generator__cpus=0,
        generator__count=1,
        generator__slot="generator_slot",
        reward__cpus=0,
        reward__slot="generator_slot",
    )
    process = start("--config", file, RAY_ADDRESS=two_nodes.address)
    run = tmp_path / "run"
    wait_for(lambda: steps(run) >= 2, process)
    place = {a["ActorClassName"]: a["Address"]["NodeID"] for a in actors().values() if a["State"] == "ALIVE"}
    assert place["ReplayQueue"] == two_nodes.head_node.node_id
    drain.announce(place["Learner"], 60.0)
    wait_for(lambda: not drain.actors_on(place["Learner"]), process)
    done = steps(run)
    wait_for(lambda: steps(run) >= done + 2, process)
    assert RunFolder(run).last_checkpoint() > 0  # the run continued from the checkpoint
    assert [r["step"] for r in RunFolder(run).records()] == list(range(1, steps(run) + 1))
    assert "Learner" in {a["ActorClassName"] for a in actors().values() if a["State"] == "ALIVE"}
    process.send_signal(signal.SIGTERM)
    out = process.output(LIMIT)
    assert process.returncode == 128 + signal.SIGTERM, out
    sound(run)


@ray.remote(num_cpus=0, resources={"generator_slot": 1})
class Resident:
    def node(self) -> str:
        return ray.get_runtime_context().get_node_id()


def test_draining_node_gets_no_new_actor_and_empties(two_nodes: Cluster) -> None:
    actor = Resident.remote()
    node = ray.get(actor.node.remote())
    assert node not in draining_nodes()
    assert drain.actors_on(node) == ["Resident"]
    drain.announce(node, 60.0)
    assert node in draining_nodes()
    refused = Resident.remote().node.remote()
    assert ray.wait([refused], timeout=3.0)[0] == []
    assert not drain.wait_until(lambda: not drain.actors_on(node), 1.0)
    ray.kill(actor)
    assert drain.wait_until(lambda: not drain.actors_on(node), 10.0)


def test_driver_that_joins_a_cluster_prints_nothing_of_ray(two_nodes: Cluster) -> None:
    code = "from actors.driver.start_check import join_cluster; join_cluster()"
    variables = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_MODE"}
    joined = variables | {"RAY_ADDRESS": two_nodes.address}
    out = subprocess.run([sys.executable, "-c", code], env=joined, capture_output=True, text=True, timeout=200)
    assert (out.returncode, out.stdout, out.stderr) == (0, "", "")


def test_wait_until_tests_once_more_at_its_end() -> None:
    naps: list[float] = []
    assert not drain.wait_until(lambda: False, 3.0, naps.append)
    assert naps == [1.0, 1.0, 1.0]
    assert drain.wait_until(lambda: len(naps) == 5, 2.0, naps.append)


PROGRAM = """import signal, sys, time
signal.signal(signal.SIGTERM, {handler})
print("ready", flush=True)
time.sleep(60)
"""


def start_program(folder: Path, handler: str, *words: str) -> psutil.Process:
    script = folder / "treeadv"
    script.write_text(PROGRAM.format(handler=handler))
    child = subprocess.Popen([sys.executable, str(script), *words], stdout=subprocess.PIPE)
    assert child.stdout and child.stdout.readline() == b"ready\n"
    return psutil.Process(child.pid)


def test_driver_process_is_found_and_ends_on_the_signal(tmp_path: Path) -> None:
    train = start_program(tmp_path, "lambda *_: sys.exit(0)", "train", "--config", "x")
    other = start_program(tmp_path, "lambda *_: sys.exit(0)", "show", "train")
    try:
        assert drain.find_drivers([psutil.Process(), train, other]) == [train]
        assert drain.interrupt([train], 10.0) == []
        assert drain.find_drivers([train]) == []
    finally:
        other.kill()


def test_driver_that_outlives_its_time_is_returned(tmp_path: Path) -> None:
    stubborn = start_program(tmp_path, "signal.SIG_IGN", "train")
    began = time.monotonic()
    try:
        assert drain.interrupt([stubborn], 1.0) == [stubborn]
        assert time.monotonic() - began < 5
    finally:
        stubborn.kill()
