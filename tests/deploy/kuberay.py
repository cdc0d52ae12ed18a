"""What KubeRay 1.7's operator refuses, as far as the chart could break it: read in ray-operator/controllers/ray, utils/validation.go and
common/service.go, and written again here, because no operator runs in the tests."""

from __future__ import annotations

import json
import re
from typing import Any

DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
LONGEST = {"RayCluster": 53, "RayJob": 47}


def service_ports(cluster: dict[str, Any]) -> dict[str, int]:
    """The ports of the head's Service (getServicePorts): those of its container, and `metrics` where none has that name."""
    ports = cluster["headGroupSpec"]["template"]["spec"]["containers"][0].get("ports", [])
    found = {p.get("name") or f"{p['containerPort']}-port": p["containerPort"] for p in ports}
    return {"metrics": 8080} | found


def faults(ray: dict[str, Any]) -> list[str]:
    """Why the operator, or the API server on its behalf, would refuse a RayCluster or RayJob."""
    name, spec = ray["metadata"]["name"], ray["spec"]
    cluster = spec["rayClusterSpec"] if ray["kind"] == "RayJob" else spec
    found = []
    if len(name) > LONGEST[ray["kind"]] or not DNS_1035.fullmatch(name):
        found.append(f"name {name}")
    ports = service_ports(cluster)
    if len(set(ports.values())) < len(ports):
        found.append(f"a port twice in the head's Service: {ports}")
    if ray["kind"] == "RayJob" and (spec.get("activeDeadlineSeconds", 1) <= 0 or spec["backoffLimit"] < 0):
        found.append("a limit of the job")
    v2 = cluster.get("autoscalerOptions", {}).get("version") == "v2"
    if cluster["authOptions"]["mode"] == "token" and tuple(map(int, cluster["rayVersion"].split("."))) < (2, 52, 0):
        found.append("a token before Ray 2.52")
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        at = group.get("groupName", "head")
        params, pod = group["rayStartParams"], group["template"]["spec"]
        if "labels" in params or not all(isinstance(v, str) for v in params.values()):
            found.append(f"{at}: rayStartParams {params}")
        if "resources" in params and not all(isinstance(n, int) for n in json.loads(params["resources"].strip("'")).values()):
            found.append(f"{at}: resources {params['resources']}")
        if "resources" in group:
            found.append(f"{at}: resources beside those of rayStartParams")
        if v2 and pod.get("restartPolicy", "Never") != "Never":
            found.append(f"{at}: restartPolicy {pod['restartPolicy']} beside autoscaler v2")
        if "idleTimeoutSeconds" in group and not v2:
            found.append(f"{at}: idleTimeoutSeconds without autoscaler v2")
        if {"RAY_enable_autoscaler_v2", "RAY_REDIS_ADDRESS", "REDIS_USERNAME"} & {e["name"] for e in pod["containers"][0].get("env", [])}:
            found.append(f"{at}: a variable that KubeRay sets")
        if not 0 <= group.get("minReplicas", 0) <= group.get("maxReplicas", 0):
            found.append(f"{at}: bounds")
    return found
