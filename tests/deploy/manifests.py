"""Finding things in what the chart rendered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "treeadv"
VALUES = sorted(p.stem for p in (CHART / "ci").glob("*.yaml"))
HELMS = ("helm3", "helm4")
Render = Callable[..., list[dict[str, Any]]]


def one(documents: list[dict[str, Any]], kind: str, name: str = "") -> dict[str, Any]:
    (found,) = (d for d in documents if d["kind"] == kind and (not name or d["metadata"]["name"] == name))
    return found


def ray_cluster(documents: list[dict[str, Any]]) -> dict[str, Any]:
    """The RayCluster as KubeRay would make it: alone, or from the RayJob."""
    (ray,) = (d for d in documents if d["apiVersion"] == "ray.io/v1")
    spec = ray["spec"]["rayClusterSpec"] if ray["kind"] == "RayJob" else ray["spec"]
    return {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": {"name": ray["metadata"]["name"], "namespace": "rl"}, "spec": spec}


def pod_templates(documents: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Every pod template of the release by a name for messages."""
    cluster = ray_cluster(documents)["spec"]
    pods = {"head": cluster["headGroupSpec"]["template"]} | {g["groupName"]: g["template"] for g in cluster["workerGroupSpecs"]}
    for d in documents:
        if d["kind"] == "Deployment":
            pods[d["metadata"]["name"]] = d["spec"]["template"]
        if d["kind"] == "RayJob":
            pods["submitter"] = d["spec"]["submitterPodTemplate"]
    return pods
