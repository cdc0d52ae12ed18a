"""Tests that the pods, the storage, the secrets and the network of the rendered chart suit the run that it starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

from actors.driver import drain
from tests.deploy.manifests import (
    CHART,
    VALUES,
    Helm,
    Render,
    one,
    pod_templates,
    ray_cluster,
    run_config,
    train_config,
)
from treeadv.storage.run_store import run_store


@pytest.mark.parametrize("values", VALUES)
def test_run_configuration_matches_the_worker_groups(render: Render, values: str, tmp_path: Path) -> None:
    documents = render(values)
    config = run_config(documents, tmp_path)
    cluster = ray_cluster(documents)["spec"]
    types = _derive_autoscaling_config_from_ray_cr(ray_cluster(documents))["available_node_types"]
    for role, section in (("generator", config.generator), ("learner", config.learner), ("reward", config.reward)):
        groups = [g for g in cluster["workerGroupSpecs"] if g["template"]["metadata"]["labels"]["treeadv/role"] == role]
        offered = sum(g["replicas"] * types[g["groupName"]]["resources"][section.slot] for g in groups)
        assert section.count == offered
        for g in groups:  # the actors of all slots also fit by CPU and GPU
            resources = types[g["groupName"]]["resources"]
            assert section.cpus * resources[section.slot] <= resources["CPU"]
            assert getattr(section, "gpus", 0) * resources[section.slot] <= resources.get("GPU", 0)
    assert config.metrics.host == "0.0.0.0"
    # One generator drives all servers of a fleet, so the number of generators is fixed.
    assert config.scaling.enabled == (cluster["enableInTreeAutoscaling"] and not config.generator.sglang.url)


def test_gpu_group_sets_cuda_and_divides_gpus_by_slots(render: Render, tmp_path: Path) -> None:
    config = run_config(render("gpu-cluster"), tmp_path)
    learner = config.learner
    assert (learner.device, learner.count, learner.gpus, learner.cpus) == ("cuda", 16, 1.0, 8.0)
    assert (config.generator.count, config.scaling.min, config.scaling.max) == (2, 2, 8 + 32)


ON_CLAIM = [v for v in VALUES if v not in ("object-store", "cloud-identity")]


@pytest.mark.parametrize("values", ON_CLAIM)
def test_only_reward_and_fleet_pods_mount_the_claim_read_only(render: Render, values: str, tmp_path: Path) -> None:
    documents = render(values)
    root = Path(run_config(documents, tmp_path).run.root)
    made = [d["metadata"]["name"] for d in documents if d["kind"] == "PersistentVolumeClaim"]
    (claim,) = made or ["shared-runs"]  # the examples with storage.claim.existing need no claim
    for name, template in pod_templates(documents).items():
        if name in ("submitter", "run1-treeadv-router"):
            continue
        pod = template["spec"]
        claims = {
            v["name"]: v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v
        }
        (mount,) = (m for m in pod["containers"][0]["volumeMounts"] if m["name"] in claims)
        assert claims[mount["name"]] == claim
        assert root.is_relative_to(mount["mountPath"])
        assert mount.get("readOnly", False) == (name in ("reward", "run1-treeadv-fleet"))


def test_object_store_needs_no_claim(render: Render, tmp_path: Path) -> None:
    documents = render("object-store")
    assert "PersistentVolumeClaim" not in {d["kind"] for d in documents}
    config = run_config(documents, tmp_path)
    store = run_store(config, tmp_path)  # the run opens the store in the same way
    assert store.uri == "s3://rl/runs/run1?endpoint_override=minio.storage:9000&scheme=http&region=us-east-1"
    for name, template in pod_templates(documents).items():
        if name == "submitter":
            continue
        pod = template["spec"]
        mounts = pod["containers"][0]["volumeMounts"]
        (mount,) = (m for m in mounts if Path(config.run.root).is_relative_to(m["mountPath"]))
        assert {v["name"]: v.get("emptyDir") for v in pod["volumes"]}[mount["name"]] == {}


def from_values(helm: Helm, values: dict[str, Any], base: str) -> list[dict[str, Any]]:
    """Return the manifests of an example of ci/ with additional values."""
    sets = [word for key, value in values.items() for word in ("--set-json", f"{key}={json.dumps(value)}")]
    out = helm("template", "run1", str(CHART), "-n", "rl", "-f", str(CHART / "ci" / f"{base}.yaml"), *sets)
    assert out.returncode == 0, out.stderr
    return [d for d in yaml.safe_load_all(out.stdout) if d]


@pytest.mark.parametrize("base", ["minimal", "fleet-hpa", "object-store"])
def test_secrets_and_identity_reach_only_the_pods_that_use_them(helm: Helm, base: str) -> None:
    values = {
        "existingSecrets": ["hub"],
        "storage.existingSecrets": ["store"],
        "workers.reward.existingSecrets": ["judge"],
    }
    documents = from_values(
        helm, values | {"serviceAccount.name": "", "serviceAccount.annotations": {"role": "r"}}, base
    )
    expected = {
        "head": {"hub", "store"},
        "learner": {"hub", "store"},
        "generator": {"hub"},
        "reward": {"judge"},
        "submitter": set(),
        "run1-treeadv-fleet": {"hub"},
        "run1-treeadv-router": set(),
    }
    for name, template in pod_templates(documents).items():
        pod = template["spec"]
        secrets = {s["secretRef"]["name"] for c in pod["containers"] for s in c.get("envFrom", [])}
        assert secrets == expected[name], name
        accounts = [d["metadata"] for d in documents if d["kind"] == "ServiceAccount"]
        with_identity = {m["name"] for m in accounts if m.get("annotations")}
        assert (pod.get("serviceAccountName") in with_identity) == (name in ("head", "learner")), name


@pytest.mark.parametrize("base", ["minimal", "fleet-hpa"])
def test_labels_pull_secrets_and_placement_reach_every_pod(helm: Helm, base: str) -> None:
    place = {
        "nodeSelector": {"pool": "rl"},
        "tolerations": [{"key": "rl", "operator": "Exists"}],
        "priorityClassName": "high",
        "affinity": {"podAffinity": {}},
    }
    groups = ("head", "workerDefaults", "generator.fleet")
    placed = {f"{group}.{key}": value for group in groups for key, value in place.items()}
    more = {"image.pullSecrets": ["pull"], "podLabels": {"team": "rl"}, "podAnnotations": {"note": "yes"}}
    for name, template in pod_templates(from_values(helm, placed | more, base)).items():
        pod, metadata = template["spec"], template["metadata"]
        assert place.items() <= pod.items(), name
        assert pod["imagePullSecrets"] == [{"name": "pull"}], name
        assert metadata["labels"]["team"] == "rl" and metadata["annotations"]["note"] == "yes", name


def test_fleet_generator_calls_the_router(render: Render, tmp_path: Path) -> None:
    documents = render("fleet-keda")
    config = run_config(documents, tmp_path)
    service = one(documents, "Service")
    port = service["spec"]["ports"][0]["port"]
    assert config.generator.engine == "sglang"
    assert config.generator.sglang.url == f"http://{service['metadata']['name']}:{port}"
    router = one(documents, "Deployment", "run1-treeadv-router")["spec"]["template"]["spec"]["containers"][0]["args"]
    selector = dict(arg.split("=") for arg in router[router.index("--selector") + 1 :][:2])
    fleet = one(documents, "Deployment", "run1-treeadv-fleet")["spec"]["template"]["metadata"]["labels"]
    assert selector.items() <= fleet.items()


@pytest.mark.parametrize("values", VALUES)
def test_every_pod_is_unprivileged_and_read_only(render: Render, values: str) -> None:
    documents = render(values)
    autoscaled = ray_cluster(documents)["spec"]["enableInTreeAutoscaling"]
    for name, template in pod_templates(documents).items():
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"] and not security["allowPrivilegeEscalation"]
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"] == container["resources"]["requests"]
        if name != "run1-treeadv-router":  # the router watches pods with its token
            assert pod["automountServiceAccountToken"] == (name == "head" and autoscaled)


@pytest.mark.parametrize("values", VALUES)
def test_entrypoint_reads_the_mounted_configuration(render: Render, values: str) -> None:
    documents = render(values)
    for template in pod_templates(documents).values():
        volumes = {v["name"] for v in template["spec"]["volumes"]}
        assert {m["name"] for c in template["spec"]["containers"] for m in c["volumeMounts"]} == volumes
    head = pod_templates(documents)["head"]["spec"]
    (mount,) = (m["mountPath"] for m in head["containers"][0]["volumeMounts"] if m["name"] == "config")
    for job in (d for d in documents if d["kind"] == "RayJob"):
        assert train_config(job["spec"]["entrypoint"]) == Path(mount) / "config.yaml"


@pytest.mark.parametrize("values", VALUES)
def test_drain_ends_within_the_grace_period(render: Render, values: str) -> None:
    cluster = ray_cluster(render(values))["spec"]
    templates = {
        "driver": [cluster["headGroupSpec"]["template"]],
        "node": [g["template"] for g in cluster["workerGroupSpecs"]],
    }
    for what, pods in templates.items():
        for pod in pods:
            line = pod["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
            assert line[:3] == ["python", "-m", "actors.driver.drain"]
            args = drain.parse_arguments(line[3:])
            assert args.what == what
            assert 0 < args.seconds < pod["spec"]["terminationGracePeriodSeconds"]


@pytest.mark.parametrize("values", VALUES)
def test_budgets_and_policies_select_existing_pods(render: Render, values: str) -> None:
    documents = render(values)
    labels = [t["metadata"]["labels"] for t in pod_templates(documents).values()]
    least = {"head": 1}
    for group in ray_cluster(documents)["spec"]["workerGroupSpecs"]:
        role = group["template"]["metadata"]["labels"]["treeadv/role"]
        least[role] = least.get(role, 0) + group["minReplicas"]
    for document in documents:
        if document["kind"] == "PodDisruptionBudget":
            selector = document["spec"]["selector"]["matchLabels"]
            assert any(selector.items() <= pod.items() for pod in labels), selector
            assert ("minAvailable" in document["spec"]) != (
                "maxUnavailable" in document["spec"]
            )  # the API server accepts only one of the two
            assert document["spec"].get("minAvailable", 0) <= least.get(selector["treeadv/role"], 0)
        if document["kind"] == "NetworkPolicy":
            selector = document["spec"]["podSelector"]["matchLabels"]
            assert all(selector.items() <= pod.items() for pod in labels)


def open_ports(documents: list[dict[str, Any]], address: str) -> set[int]:
    """Return the ports of an address outside the cluster that the network policy opens."""
    rules = one(documents, "NetworkPolicy")["spec"]["egress"]
    block = {"ipBlock": {"cidr": f"{address}/32"}}
    matching = [r for r in rules if "to" not in r or block in r["to"]]
    return {p["port"] for r in matching for p in r["ports"]} - {53}


def test_network_policy_blocks_metadata_servers_by_default(render: Render) -> None:
    for address, port in (("169.254.169.254", 80), ("169.254.169.252", 988), ("169.254.170.23", 80)):
        assert open_ports(render("minimal"), address) == {443, 6443}
        assert open_ports(render("cloud-identity"), address) >= {443, 6443, port}


@pytest.mark.parametrize("values", ["fixed", "fleet-keda"])
def test_pod_monitor_scrapes_declared_ports(render: Render, values: str, tmp_path: Path) -> None:
    documents = render(values)
    endpoints = one(documents, "PodMonitor")["spec"]["podMetricsEndpoints"]
    containers = [c for t in pod_templates(documents).values() for c in t["spec"]["containers"]]
    declared = {p["name"]: p["containerPort"] for c in containers for p in c.get("ports", [])}
    scraped = {e["port"] for e in endpoints}
    assert scraped <= set(declared)
    first = run_config(documents, tmp_path).metrics.port
    ours = {name: port for name, port in declared.items() if name.startswith("treeadv-")}
    assert ours == {f"treeadv-{i}": first + i for i in range(len(ours))}
    assert set(ours) <= scraped


def test_keda_query_selects_the_label_of_the_pod_monitor(render: Render) -> None:
    documents = render("fleet-keda")
    query = one(documents, "ScaledObject")["spec"]["triggers"][0]["metadata"]["query"]
    (matcher,) = (m for m in promql_parser.parse(query).expr.matchers.matchers if m.name == "run")
    assert matcher.value == "run1"
    sglang = next(e for e in one(documents, "PodMonitor")["spec"]["podMetricsEndpoints"] if e["port"] == "sglang")
    (source,) = (r["sourceLabels"] for r in sglang["relabelings"] if r["targetLabel"] == "run")
    fleet = one(documents, "Deployment", "run1-treeadv-fleet")["spec"]["template"]["metadata"]["labels"]
    assert source == ["__meta_kubernetes_pod_label_app_kubernetes_io_instance"]
    assert fleet["app.kubernetes.io/instance"] == matcher.value


def test_rules_and_dashboards_render_unchanged(render: Render) -> None:
    documents = render("fixed")
    rules = yaml.safe_load((CHART / "files" / "rules" / "treeadv.yml").read_text())
    assert one(documents, "PrometheusRule")["spec"] == rules
    shipped = {k: v for d in documents if "-dashboard-" in d["metadata"]["name"] for k, v in d["data"].items()}
    assert {k: json.loads(v) for k, v in shipped.items()} == {
        p.name: json.loads(p.read_text()) for p in (CHART / "files" / "dashboards").glob("*.json")
    }
    assert shipped
