"""Tests that the manifests of the chart pass the schemas of Kubernetes and KubeRay and the parser of Ray's autoscaler,
with Helm 3 and with Helm 4."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray._private import services
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

from tests.deploy import kuberay, schemas
from tests.deploy.manifests import CHART, VALUES, Helm, Render, pod_templates, ray_cluster, sets

KUBERNETES = ("1.30.0", "1.34.0", "1.37.0")
# The schemas of Kubernetes do not include these custom kinds. A test of this file validates each of them.
BY_NODE = {"PodMonitor", "PrometheusRule", "ScaledObject"}
BY_RAY = {"RayCluster", "RayJob"}
# The fields of KubeRay v1.7.0 that the chart uses (ray-operator/apis/ray/v1).
RAY_CLUSTER = {"rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions"}
RAY_CLUSTER |= {"headGroupSpec", "workerGroupSpecs"}
GROUP = {"groupName", "replicas", "minReplicas", "maxReplicas", "idleTimeoutSeconds", "rayStartParams", "template"}
RAY_JOB = {"entrypoint", "submissionMode", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "backoffLimit"}
RAY_JOB |= {"activeDeadlineSeconds", "submitterConfig", "submitterPodTemplate", "rayClusterSpec"}


@pytest.mark.parametrize("version", [pytest.param("helm3", marks=pytest.mark.slow), "helm4"])
@pytest.mark.parametrize("values", VALUES)
def test_lint_finds_nothing(helm: Helm, values: str, version: str) -> None:
    out = helm("lint", "--strict", str(CHART), "-f", str(CHART / "ci" / f"{values}.yaml"), version=version)
    assert out.returncode == 0, out.stdout + out.stderr


@pytest.mark.parametrize("values", VALUES)
def test_helm_3_and_4_render_the_same(render: Render, values: str) -> None:
    assert render(values, version="helm3") == render(values, version="helm4")


@pytest.mark.parametrize("kube", KUBERNETES)
@pytest.mark.parametrize("values", VALUES)
def test_built_in_kinds_pass_the_strict_schema(render: Render, values: str, kube: str) -> None:
    for document in render(values):
        if document["kind"] in BY_NODE | BY_RAY:
            continue
        # `validate` raises an error for a kind without a schema.
        schemas.validate(document, kube.rsplit(".", 1)[0])


@pytest.mark.parametrize("kube", KUBERNETES)
def test_manifests_do_not_depend_on_the_version_of_kubernetes(render: Render, kube: str) -> None:
    assert render("additions", kube=kube) == render("additions")


@pytest.mark.parametrize("values", VALUES)
def test_ray_pod_templates_pass_the_strict_schema(render: Render, values: str) -> None:
    for name, template in pod_templates(render(values)).items():
        metadata = template["metadata"] | {"name": name}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
        schemas.validate(pod, "1.34")


def test_strict_schema_refuses_an_unknown_field() -> None:
    spec = {"containers": [{"name": "x", "imag": "y"}]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": spec}
    with pytest.raises(jsonschema.ValidationError, match="'imag' was unexpected"):
        schemas.validate(pod, "1.34")


def test_third_party_resources_match_their_crds(render: Render, node: Path) -> None:
    found = [d for values in VALUES for d in render(values) if d["kind"] in BY_NODE]
    assert {d["kind"] for d in found} == BY_NODE
    assert _crd_faults(node, found) == ""
    broken = json.loads(json.dumps(found[0]).replace('"15s"', '"7 parsecs"'))
    assert "interval" in _crd_faults(node, [broken])


def _crd_faults(node: Path, resources: list[dict[str, Any]]) -> str:
    line = ["node", "crds.mjs"]
    out = subprocess.run(line, cwd=node, input=json.dumps(resources), capture_output=True, text=True, timeout=60)
    return out.stderr


@pytest.mark.parametrize("values", VALUES)
def test_ray_kinds_use_only_fields_of_kuberay(render: Render, values: str) -> None:
    documents = render(values)
    cluster = ray_cluster(documents)["spec"]
    assert set(cluster) <= RAY_CLUSTER
    assert all(set(g) <= GROUP for g in cluster["workerGroupSpecs"])
    assert all(set(d["spec"]) <= RAY_JOB for d in documents if d["kind"] == "RayJob")


def ray_kind(documents: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the RayJob or RayCluster."""
    (ray,) = (d for d in documents if d["kind"] in BY_RAY)
    return ray


@pytest.mark.parametrize("values", VALUES)
def test_kuberay_validation_finds_no_fault(render: Render, values: str) -> None:
    ray = ray_kind(render(values))
    assert kuberay.faults(ray) == []
    ports = kuberay.service_ports(ray_cluster(render(values))["spec"])
    assert ports.keys() >= {"gcs-server", "dashboard", "client", "metrics"}


def test_kuberay_validation_finds_each_planted_fault(render: Render) -> None:
    ray = json.loads(json.dumps(ray_kind(render("fixed"))))
    cluster = ray["spec"]["rayClusterSpec"]
    for port in cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["ports"]:
        port["name"] = port["name"].replace("metrics", "ray-metrics")
    cluster["workerGroupSpecs"][0]["idleTimeoutSeconds"] = 300
    ray["metadata"]["name"] = "7b-run"
    subjects = [fault.split(":")[0] for fault in kuberay.faults(ray)]
    assert subjects == ["name 7b-run", "a port twice in the head's Service", "generator"]


@pytest.mark.parametrize("release", ["7b-run", "my.run"])
def test_release_name_that_kuberay_refuses_fails_the_render(helm: Helm, release: str) -> None:
    out = helm("template", release, str(CHART), *sets([]))
    assert out.returncode == 1
    assert f"release name {release}: KubeRay accepts" in out.stderr


def test_longest_release_name_gives_a_valid_resource_name(helm: Helm) -> None:
    out = helm("template", "r" * 53, str(CHART), *sets([]))
    assert kuberay.faults(ray_kind([d for d in yaml.safe_load_all(out.stdout) if d])) == []


@pytest.mark.parametrize("values", VALUES)
def test_ray_autoscaler_parses_bounds_slots_and_gpus(render: Render, values: str) -> None:
    cluster = ray_cluster(render(values))
    parsed = _derive_autoscaling_config_from_ray_cr(cluster)
    types = parsed["available_node_types"]
    assert types["headgroup"]["resources"]["CPU"] == 0
    groups = {g["groupName"]: g for g in cluster["spec"]["workerGroupSpecs"]}
    assert set(types) == {"headgroup", *groups}
    for name, group in groups.items():
        role = group["template"]["metadata"]["labels"]["treeadv/role"]
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        slots = {k: v for k, v in types[name]["resources"].items() if k.endswith("_slot")}
        assert list(slots) == [f"{role}_slot"]
        gpus = sum(int(n) for resource, n in limits.items() if resource.startswith("nvidia.com/"))  # GPUs and MIG
        assert types[name]["resources"].get("GPU", 0) == gpus
        assert (types[name]["min_workers"], types[name]["max_workers"]) == (group["minReplicas"], group["maxReplicas"])
        assert types[name].get("idle_timeout_s") == group.get("idleTimeoutSeconds")


GI = 1 << 30
UNITS = {"Gi": GI, "Mi": 1 << 20, "G": 10**9}


def size(quantity: str) -> int:
    """Return the number of bytes of a quantity such as 2Gi."""
    number, unit = re.fullmatch(r"([0-9.]+)(\w+)", quantity).groups()
    return int(float(number) * UNITS[unit])


@pytest.mark.parametrize("values", VALUES)
def test_object_store_fits_into_shared_memory(
    render: Render, values: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cluster = ray_cluster(render(values))["spec"]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        (shm,) = (size(v["emptyDir"]["sizeLimit"]) for v in pod["volumes"] if v["name"] == "shm")
        memory = size(pod["containers"][0]["resources"]["limits"]["memory"])
        monkeypatch.setattr("ray._private.utils.get_shared_memory_bytes", lambda shm=shm: shm)
        monkeypatch.setattr("ray._common.utils.get_system_memory", lambda memory=memory: memory)
        asked = int(group["rayStartParams"]["object-store-memory"])
        assert services.determine_plasma_store_config(asked, str(tmp_path))[0] == "/dev/shm"
        assert asked > 0.89 * shm
