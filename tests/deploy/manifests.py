"""Helpers that read resources of the chart from rendered manifests."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from actors import cli
from treeadv.cli.parser import new_parser
from treeadv.config import Config, load

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "treeadv"
VALUES = sorted(p.stem for p in (CHART / "ci").glob("*.yaml"))
# The chart needs at least these values: storage and a task.
FEWEST = {
    "storage.claim.size": "1Gi",
    "config.task.source": "reasoning-gym",
    "config.task.families[0].name": "chain_sum",
}
Render = Callable[..., list[dict[str, Any]]]
Helm = Callable[..., subprocess.CompletedProcess[str]]


def sets(values: Iterable[str]) -> list[str]:
    """Return `--set` options for the required values of the chart and for `values`, which have the form a.b=value."""
    fewest = [f"{key}={value}" for key, value in FEWEST.items()]
    return [word for value in (*fewest, *values) for word in ("--set", value)]


def one(documents: list[dict[str, Any]], kind: str, name: str = "") -> dict[str, Any]:
    """Return the only resource of a kind. With a name, return the only resource of that kind and name."""
    (found,) = (d for d in documents if d["kind"] == kind and (not name or d["metadata"]["name"] == name))
    return found


def ray_cluster(documents: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the RayCluster, which is either rendered alone or created by KubeRay from the RayJob."""
    (ray,) = (d for d in documents if d["apiVersion"] == "ray.io/v1")
    spec = ray["spec"]["rayClusterSpec"] if ray["kind"] == "RayJob" else ray["spec"]
    metadata = {"name": ray["metadata"]["name"], "namespace": "rl"}
    return {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": metadata, "spec": spec}


def pod_templates(documents: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the pod templates of the release by name."""
    cluster = ray_cluster(documents)["spec"]
    pods = {"head": cluster["headGroupSpec"]["template"]}
    pods |= {g["groupName"]: g["template"] for g in cluster["workerGroupSpecs"]}
    for d in documents:
        if d["kind"] == "Deployment":
            pods[d["metadata"]["name"]] = d["spec"]["template"]
        if d["kind"] == "RayJob":
            pods["submitter"] = d["spec"]["submitterPodTemplate"]
    return pods


def run_config(documents: list[dict[str, Any]], folder: Path) -> Config:
    """Write the rendered configuration of the run into `folder` and load it."""
    path = folder / "config.yaml"
    path.write_text(one(documents, "ConfigMap", "run1-treeadv")["data"]["config.yaml"])
    return load(path)


def train_config(line: str) -> Path:
    """Return the configuration file of a `treeadv train` command."""
    program, *words = shlex.split(line)
    parser, commands = new_parser()
    cli._add_train(commands)
    args = parser.parse_args(words)
    assert program == "treeadv" and args.resume_or_start
    return args.config
