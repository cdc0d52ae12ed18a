"""Checks of KubeRay 1.7's operator on the resources of the chart. This module repeats the checks, because no operator
runs in the tests.

The source is ray-operator/controllers/ray, utils/validation.go and common/service.go.
"""

from __future__ import annotations

import json
import re
from typing import Any

DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
RESERVED = {"RAY_enable_autoscaler_v2", "RAY_REDIS_ADDRESS", "REDIS_USERNAME"}
LONGEST = {"RayCluster": 53, "RayJob": 47}


def service_ports(cluster: dict[str, Any]) -> dict[str, int]:
    """Return the ports of the head's Service (getServicePorts). These are the ports of the container, and port 8080
    with the name `metrics` unless the container has a port of that name."""
    ports = cluster["headGroupSpec"]["template"]["spec"]["containers"][0].get("ports", [])
    found = {p.get("name") or f"{p['containerPort']}-port": p["containerPort"] for p in ports}
    return {"metrics": 8080} | found


def faults(ray: dict[str, Any]) -> list[str]:
    """Return the reasons for which the operator or the API server refuses a RayCluster or RayJob."""
    release, spec = ray["metadata"]["name"], ray["spec"]
    cluster = spec["rayClusterSpec"] if ray["kind"] == "RayJob" else spec
    found = []
    if len(release) > LONGEST[ray["kind"]] or not DNS_1035.fullmatch(release):
        found.append(f"name {release}")
    ports = service_ports(cluster)
    if len(set(ports.values())) < len(ports):
        found.append(f"a port twice in the head's Service: {ports}")
    if ray["kind"] == "RayJob" and (spec.get("activeDeadlineSeconds", 1) <= 0 or spec["backoffLimit"] < 0):
        found.append("a negative limit of the job")
    v2 = cluster.get("autoscalerOptions", {}).get("version") == "v2"
    if cluster["authOptions"]["mode"] == "token" and tuple(map(int, cluster["rayVersion"].split("."))) < (2, 52, 0):
        found.append("token authentication before Ray 2.52")
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        name = group.get("groupName", "head")
        params, pod = group["rayStartParams"], group["template"]["spec"]
        if "labels" in params or not all(isinstance(v, str) for v in params.values()):
            found.append(f"{name}: rayStartParams {params}")
        custom = json.loads(params.get("resources", "{}").strip("'"))
        if not all(isinstance(n, int) for n in custom.values()):
            found.append(f"{name}: resources {params['resources']}")
        if "resources" in group:
            found.append(f"{name}: resources in the group and in rayStartParams")
        if v2 and pod.get("restartPolicy", "Never") != "Never":
            found.append(f"{name}: restartPolicy {pod['restartPolicy']} with autoscaler v2")
        if "idleTimeoutSeconds" in group and not v2:
            found.append(f"{name}: idleTimeoutSeconds without autoscaler v2")
        if RESERVED & {e["name"] for e in pod["containers"][0].get("env", [])}:
            found.append(f"{name}: a variable that KubeRay sets")
        if not 0 <= group.get("minReplicas", 0) <= group.get("maxReplicas", 0):
            found.append(f"{name}: bounds")
    return found
