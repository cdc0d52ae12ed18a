"""Tests Ray's autoscaler (v2) on this machine with the groups of the rendered chart. Each group must follow only its
own actors."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import yaml
from ray._private.services import get_node_ip_address
from ray._private.test_utils import wait_for_condition
from ray.actor import ActorHandle
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

from tests.deploy.manifests import Render, ray_cluster
from tests.deploy.servers import eventually, free_port, lines
from tests.deploy.test_live_run import recipe

pytestmark = pytest.mark.slow

TREEADV = str(Path(sys.executable).with_name("treeadv"))
HEAD = "ray.head.default"
# The provider is named by module, because Ray's wheel lacks the default file that the name of the provider needs.
NODES = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"


def configuration(cluster: dict[str, Any], address: str, idle: float) -> dict[str, Any]:
    """Return the configuration of the autoscaler that Ray derives from the chart's RayCluster, with processes as nodes
    and shorter time-outs."""
    derived = _derive_autoscaling_config_from_ray_cr(cluster)
    types = {HEAD: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}}
    for name, group in derived["available_node_types"].items():
        if name != "headgroup":
            # this is the memory of a pod, and this machine may have less
            resources = {k: v for k, v in group["resources"].items() if k != "memory"}
            types[name] = group | {"resources": resources, "idle_timeout_s": idle, "min_workers": 0}
    provider = {
        "type": "external",
        "module": NODES,
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
        "launch_multiple": True,
        "head_node_id": FAKE_HEAD_NODE_ID,
        "gcs_address": address,
    }
    return derived | {"provider": provider, "available_node_types": types, "head_node_type": HEAD}


@pytest.fixture
def scaled(render: Render, tmp_path: Path) -> Iterator[dict[str, str]]:
    """Start a head with an autoscaler and connect to it. Yield the environment of further drivers. The processes are
    ended by their ids, so that other Ray clusters of this machine continue."""
    file = tmp_path / "autoscaler.json"
    port = free_port()
    address = f"{get_node_ip_address()}:{port}"
    file.write_text(json.dumps(configuration(ray_cluster(render("minimal")), address, idle=5.0)))
    scratch = tempfile.mkdtemp(prefix="ray")  # the path is short, because the length of socket paths is limited
    line = [
        str(Path(sys.executable).with_name("ray")),
        "start",
        "--head",
        "--block",
        "--num-cpus=0",
        "--object-store-memory=80000000",
        f"--port={port}",
        f"--autoscaling-config={file}",
        f"--temp-dir={scratch}",
        "--include-dashboard=false",
        "--disable-usage-stats",
    ]
    fake = {"RAY_FAKE_CLUSTER": "1", "RAY_enable_autoscaler_v2": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    head = {"RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID}
    # an earlier ray.init may have set this variable of the driver
    auth = {"RAY_AUTH_MODE": os.environ.get("RAY_AUTH_MODE", "disabled")}
    with (tmp_path / "ray.log").open("w") as log:
        process = psutil.Popen(line, env=os.environ | fake | head | auth, stdout=log, stderr=subprocess.STDOUT)
        try:
            _connect(address, process, tmp_path / "ray.log")
            yield auth | {"RAY_ADDRESS": address}
        finally:
            ray.shutdown()
            family = [*process.children(recursive=True), process]
            for member in family:
                member.kill()
            psutil.wait_procs(family, timeout=20)
            shutil.rmtree(scratch)


def _connect(address: str, process: psutil.Popen, log: Path) -> None:
    for _ in range(60):
        started = "Ray runtime started" in log.read_text()
        # A head whose autoscaler cannot start ends at once. It also ends a connected driver
        time.sleep(2)
        assert process.poll() is None, log.read_text()
        if started:
            ray.init(address=address, log_to_driver=False)
            return
    raise AssertionError(f"{address} did not come up: {log.read_text()}")


def nodes() -> Counter[str]:
    """Return the number of live slots by role."""
    slots = [r for n in ray.nodes() if n["Alive"] for r in n["Resources"] if r.endswith("_slot")]
    return Counter(s.removesuffix("_slot") for s in slots)


def wait_until(what: Callable[[], bool]) -> None:
    wait_for_condition(what, timeout=90, retry_interval_ms=500)


@ray.remote(num_cpus=1)
class Member:
    def ready(self) -> bool:
        return True


def member(role: str) -> ActorHandle:
    return Member.options(resources={f"{role}_slot": 1}).remote()


def test_each_node_group_follows_its_own_actors(scaled: dict[str, str]) -> None:
    assert nodes() == {}
    learner = member("learner")
    wait_until(lambda: nodes() == {"learner": 1})
    generators = [member("generator") for _ in range(3)]
    wait_until(lambda: nodes() == {"learner": 1, "generator": 3})
    assert ray.get([m.ready.remote() for m in [learner, *generators]], timeout=60) == [True] * 4
    for one in generators[1:]:
        ray.kill(one)
    wait_until(lambda: nodes() == {"learner": 1, "generator": 1})
    assert ray.get([learner.ready.remote(), generators[0].ready.remote()], timeout=60) == [True, True]
    beyond = member("learner")  # the learner group of the chart has at most one pod
    assert ray.wait([beyond.ready.remote()], timeout=8)[0] == []
    assert nodes() == {"learner": 1, "generator": 1}


def test_nodes_follow_a_run_from_one_generator_to_three_and_back(
    scaled: dict[str, str], tiny_model: Path, tmp_path: Path
) -> None:
    config = recipe(tiny_model, tmp_path)
    config["generator"] |= {"count": 1}
    for role in ("generator", "reward", "learner"):
        config[role] |= {"slot": f"{role}_slot"}
    file, run = tmp_path / "recipe.yaml", tmp_path / "watched"
    file.write_text(yaml.safe_dump(config))
    with (tmp_path / "run.log").open("w") as log:
        train = subprocess.Popen(
            [TREEADV, "train", "--config", file], env=os.environ | scaled, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            one, three = ({"generator": n, "reward": 1, "learner": 1} for n in (1, 3))
            steps(run, 3, train)
            wait_until(lambda: nodes() == one)
            subprocess.run([TREEADV, "scale", run, "generator=3"], check=True)
            wait_until(lambda: nodes() == three)
            steps(run, 5, train)
            subprocess.run([TREEADV, "scale", run, "generator=1"], check=True)
            wait_until(lambda: nodes() == one)
            steps(run, 5, train)
        finally:
            train.send_signal(signal.SIGINT)
            train.wait(timeout=120)
    assert train.returncode == 0, (tmp_path / "run.log").read_text()
    audit = subprocess.run([TREEADV, "audit", run], capture_output=True, text=True)
    assert audit.returncode == 0, audit.stdout + audit.stderr


def steps(run: Path, further: int, train: subprocess.Popen[bytes]) -> None:
    """Wait until the run has taken `count` further steps."""
    records = run / "metrics.jsonl"
    goal = lines(records) + further
    eventually(lambda: train.poll() is not None or lines(records) >= goal, 240.0)
    assert train.poll() is None, (run.parent / "run.log").read_text()
