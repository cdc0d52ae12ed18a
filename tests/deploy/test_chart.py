"""The chart renders what Kubernetes, KubeRay's schema and Ray's own autoscaler accept, for every example and both Helms."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import promql_parser
import pytest
import yaml
from ray._private import services
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

from actors import cli
from actors.driver import drain
from deploy import getnode, schema
from tests.deploy import kuberay
from tests.deploy.manifests import CHART, HELMS, ROOT, VALUES, Render, one, pod_templates, ray_cluster
from treeadv.cli.main import new_parser
from treeadv.config import Config, load
from treeadv.storage.run_store import Storage

KUBERNETES = ("1.30.0", "1.34.0", "1.37.0")
# Kinds of others, which the Kubernetes schemas do not know: each has a validator of its own in this file.
BY_NODE = {"PodMonitor", "PrometheusRule", "ScaledObject"}
BY_RAY = {"RayCluster", "RayJob"}
# The fields of KubeRay v1.7.0 that the chart uses (ray-operator/apis/ray/v1).
RAY_CLUSTER = {"rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec", "workerGroupSpecs"}
GROUP = {"groupName", "replicas", "minReplicas", "maxReplicas", "idleTimeoutSeconds", "rayStartParams", "template"}
RAY_JOB = {
    *("entrypoint", "submissionMode", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "backoffLimit", "activeDeadlineSeconds"),
    *("submitterConfig", "submitterPodTemplate", "rayClusterSpec"),
}


@pytest.mark.parametrize("version", HELMS)
@pytest.mark.parametrize("values", VALUES)
def test_lint_finds_nothing(helm: Any, values: str, version: str) -> None:
    out = helm("lint", "--strict", str(CHART), "-f", str(CHART / "ci" / f"{values}.yaml"), version=version)
    assert out.returncode == 0, out.stdout + out.stderr


@pytest.mark.parametrize("values", VALUES)
def test_helm_3_and_4_render_the_same(render: Render, values: str) -> None:
    assert render(values, version="helm3") == render(values, version="helm4")


@pytest.mark.parametrize("kube", KUBERNETES)
@pytest.mark.parametrize("values", VALUES)
def test_built_in_kinds_pass_the_strict_schema_and_no_kind_is_unknown(render: Render, values: str, kube: str) -> None:
    for document in render(values, kube=kube):
        if document["kind"] in BY_NODE | BY_RAY:
            continue
        kubernetes_validate.validate(document, kube.rsplit(".", 1)[0], strict=True)  # raises for a kind it has no schema of


@pytest.mark.parametrize("values", VALUES)
def test_pod_templates_inside_the_ray_kinds_pass_the_strict_schema(render: Render, values: str) -> None:
    for name, template in pod_templates(render(values)).items():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": template["metadata"] | {"name": name}, "spec": template["spec"]}
        kubernetes_validate.validate(pod, "1.34", strict=True)


def test_the_strict_schema_refuses_an_unknown_field() -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": {"containers": [{"name": "x", "imag": "y"}]}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod, "1.34", strict=True)


def test_custom_resources_of_others_pass_the_models_made_from_their_crds(render: Render, node: Path) -> None:
    found = [d for values in VALUES for d in render(values) if d["kind"] in BY_NODE]
    assert {d["kind"] for d in found} == BY_NODE
    assert _crd_faults(node, found) == ""
    broken = json.loads(json.dumps(found[0]).replace('"15s"', '"7 parsecs"'))
    assert "interval" in _crd_faults(node, [broken])


def _crd_faults(node: Path, resources: list[dict[str, Any]]) -> str:
    out = subprocess.run(["node", "crds.mjs"], cwd=node, input=json.dumps(resources), capture_output=True, text=True, timeout=60)
    return out.stderr


@pytest.mark.parametrize("values", VALUES)
def test_the_ray_kinds_use_fields_of_kuberay_only(render: Render, values: str) -> None:
    documents = render(values)
    cluster = ray_cluster(documents)["spec"]
    assert set(cluster) <= RAY_CLUSTER
    assert all(set(g) <= GROUP for g in cluster["workerGroupSpecs"])
    assert all(set(d["spec"]) <= RAY_JOB for d in documents if d["kind"] == "RayJob")


def ray_kind(documents: list[dict[str, Any]]) -> dict[str, Any]:
    (ray,) = (d for d in documents if d["kind"] in BY_RAY)
    return ray


@pytest.mark.parametrize("values", VALUES)
def test_kuberays_operator_would_refuse_nothing(render: Render, values: str) -> None:
    ray = ray_kind(render(values))
    assert kuberay.faults(ray) == []
    assert kuberay.service_ports(ray_cluster(render(values))["spec"]).keys() >= {"gcs-server", "dashboard", "client", "metrics"}


def test_the_rules_of_kuberay_refuse_what_the_chart_once_rendered(render: Render) -> None:
    ray = json.loads(json.dumps(ray_kind(render("fixed"))))
    cluster = ray["spec"]["rayClusterSpec"]
    for port in cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["ports"]:
        port["name"] = port["name"].replace("metrics", "ray-metrics")
    cluster["workerGroupSpecs"][0]["idleTimeoutSeconds"] = 300
    ray["metadata"]["name"] = "7b-run"
    assert [fault.split(":")[0] for fault in kuberay.faults(ray)] == ["name 7b-run", "a port twice in the head's Service", "generator"]


@pytest.mark.parametrize("release", ["7b-run", "my.run"])
def test_a_release_whose_name_kuberay_refuses_is_refused_by_the_chart(helm: Any, release: str) -> None:
    out = helm("template", release, str(CHART), "--set", "storage.claim.size=1Gi")
    assert out.returncode == 1
    assert f"release name {release}: KubeRay takes" in out.stderr


def test_the_longest_release_name_makes_names_that_kuberay_takes(helm: Any) -> None:
    out = helm("template", "r" * 53, str(CHART), "--set", "storage.claim.size=1Gi")
    assert kuberay.faults(ray_kind([d for d in yaml.safe_load_all(out.stdout) if d])) == []


@pytest.mark.parametrize("values", VALUES)
def test_rays_own_parser_finds_every_group_with_its_bounds_slots_and_gpus(render: Render, values: str) -> None:
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
        assert types[name]["resources"].get("GPU", 0) == int(limits.get("nvidia.com/gpu", 0))
        assert (types[name]["min_workers"], types[name]["max_workers"]) == (group["minReplicas"], group["maxReplicas"])
        assert types[name].get("idle_timeout_s") == group.get("idleTimeoutSeconds")


GI = 1 << 30
UNITS = {"Gi": GI, "Mi": 1 << 20, "G": 10**9}


def size(quantity: str) -> int:
    number, unit = re.fullmatch(r"([0-9.]+)(\w+)", quantity).groups()
    return int(float(number) * UNITS[unit])


@pytest.mark.parametrize("values", VALUES)
def test_rays_object_store_fits_into_shared_memory(render: Render, values: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = ray_cluster(render(values))["spec"]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        (shm,) = (size(v["emptyDir"]["sizeLimit"]) for v in pod["volumes"] if v["name"] == "shm")
        memory = size(pod["containers"][0]["resources"]["limits"]["memory"])
        monkeypatch.setattr("ray._private.utils.get_shared_memory_bytes", lambda shm=shm: shm)
        monkeypatch.setattr("ray._common.utils.get_system_memory", lambda memory=memory: memory)
        asked = int(group["rayStartParams"]["object-store-memory"])
        assert services.determine_plasma_store_config(asked, "/tmp/ray")[0] == "/dev/shm"
        assert asked > 0.89 * shm


def run_config(documents: list[dict[str, Any]], folder: Path) -> Config:
    path = folder / "config.yaml"
    path.write_text(one(documents, "ConfigMap", "run1-treeadv")["data"]["config.yaml"])
    return load(path)


@pytest.mark.parametrize("values", VALUES)
def test_the_rendered_configuration_loads_and_asks_for_what_the_groups_offer(render: Render, values: str, tmp_path: Path) -> None:
    documents = render(values)
    config = run_config(documents, tmp_path)
    cluster = ray_cluster(documents)["spec"]
    types = _derive_autoscaling_config_from_ray_cr(ray_cluster(documents))["available_node_types"]
    for role, section in (("generator", config.generator), ("learner", config.learner), ("reward", config.reward)):
        groups = [g for g in cluster["workerGroupSpecs"] if g["template"]["metadata"]["labels"]["treeadv/role"] == role]
        offered = sum(g["replicas"] * types[g["groupName"]]["resources"][section.slot] for g in groups)
        assert section.count == offered
        for g in groups:  # as many actors as slots fit on a pod, by CPU and GPU too
            resources = types[g["groupName"]]["resources"]
            assert section.cpus * resources[section.slot] <= resources["CPU"]
            assert getattr(section, "gpus", 0) * resources[section.slot] <= resources.get("GPU", 0)
    assert config.metrics.host == "0.0.0.0"
    # One generator drives all servers of a fleet, so its number stays.
    assert config.scaling.enabled == (cluster["enableInTreeAutoscaling"] and not config.generator.sglang.url)


def test_a_gpu_group_puts_learners_on_cuda_and_shares_the_gpus_among_slots(render: Render, tmp_path: Path) -> None:
    config = run_config(render("gpu-cluster"), tmp_path)
    assert (config.learner.device, config.learner.count, config.learner.gpus, config.learner.cpus) == ("cuda", 16, 1.0, 8.0)
    assert (config.generator.count, config.scaling.min, config.scaling.max) == (2, 2, 8 + 32)


ON_CLAIM = [v for v in VALUES if v not in ("object-store", "cloud-identity")]


@pytest.mark.parametrize("values", ON_CLAIM)
def test_runs_lie_on_one_claim_that_ray_pods_write_and_reward_pods_and_a_fleet_read(render: Render, values: str, tmp_path: Path) -> None:
    documents = render(values)
    root = Path(run_config(documents, tmp_path).run.root)
    made = [d["metadata"]["name"] for d in documents if d["kind"] == "PersistentVolumeClaim"]
    (claim,) = made or ["shared-runs"]  # that of the examples with storage.claim.existing
    for name, template in pod_templates(documents).items():
        if name in ("submitter", "run1-treeadv-router"):
            continue
        pod = template["spec"]
        claims = {v["name"]: v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v}
        (mount,) = (m for m in pod["containers"][0]["volumeMounts"] if m["name"] in claims)
        assert claims[mount["name"]] == claim
        assert root.is_relative_to(mount["mountPath"])
        assert mount.get("readOnly", False) == (name in ("reward", "run1-treeadv-fleet"))


def test_runs_in_an_object_store_need_no_claim_and_every_ray_pod_has_scratch(render: Render, tmp_path: Path) -> None:
    documents = render("object-store")
    assert "PersistentVolumeClaim" not in {d["kind"] for d in documents}
    config = run_config(documents, tmp_path)
    storage = Storage.of(config)  # as the run itself would open it
    assert storage.uri == "s3://rl/runs/run1?endpoint_override=minio.storage:9000&scheme=http&region=us-east-1"
    for name, template in pod_templates(documents).items():
        if name == "submitter":
            continue
        pod = template["spec"]
        (mount,) = (m for m in pod["containers"][0]["volumeMounts"] if Path(config.run.root).is_relative_to(m["mountPath"]))
        assert {v["name"]: v.get("emptyDir") for v in pod["volumes"]}[mount["name"]] == {}


def from_values(helm: Any, values: dict[str, Any], base: str) -> list[dict[str, Any]]:
    """What the chart renders for an example with further values."""
    sets = [word for key, value in values.items() for word in ("--set-json", f"{key}={json.dumps(value)}")]
    out = helm("template", "run1", str(CHART), "-n", "rl", "-f", str(CHART / "ci" / f"{base}.yaml"), *sets)
    assert out.returncode == 0, out.stderr
    return [d for d in yaml.safe_load_all(out.stdout) if d]


@pytest.mark.parametrize("base", ["minimal", "fleet-hpa", "object-store"])
def test_secrets_and_the_clouds_identity_reach_only_the_pods_that_use_them(helm: Any, base: str) -> None:
    values = {"existingSecrets": ["hub"], "storage.existingSecrets": ["store"], "workers.reward.existingSecrets": ["judge"]}
    documents = from_values(helm, values | {"serviceAccount.name": "", "serviceAccount.annotations": {"role": "r"}}, base)
    wanted = {
        "head": {"hub", "store"}, "learner": {"hub", "store"}, "generator": {"hub"}, "reward": {"judge"}, "submitter": set(),
        "run1-treeadv-fleet": {"hub"}, "run1-treeadv-router": set(),
    }
    for name, template in pod_templates(documents).items():
        pod = template["spec"]
        held = {s["secretRef"]["name"] for c in pod["containers"] for s in c.get("envFrom", [])}
        assert held == wanted[name], name
        with_identity = {d["metadata"]["name"] for d in documents if d["kind"] == "ServiceAccount" and d["metadata"].get("annotations")}
        assert (pod.get("serviceAccountName") in with_identity) == (name in ("head", "learner")), name


@pytest.mark.parametrize("base", ["minimal", "fleet-hpa"])
def test_every_pod_can_be_pulled_labelled_and_placed(helm: Any, base: str) -> None:
    place = {
        "nodeSelector": {"pool": "rl"}, "tolerations": [{"key": "rl", "operator": "Exists"}], "priorityClassName": "high",
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


def test_a_fleet_makes_the_generators_call_the_router(render: Render, tmp_path: Path) -> None:
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
def test_every_pod_is_unprivileged_read_only_and_without_an_unused_token(render: Render, values: str) -> None:
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
        if name != "run1-treeadv-router":  # the router watches pods
            assert pod["automountServiceAccountToken"] == (name == "head" and autoscaled)


def trains(line: str) -> Path:
    """The configuration that a command line starts or goes on with."""
    program, *words = shlex.split(line)
    parser, commands = new_parser()
    cli._add_train(commands)
    args = parser.parse_args(words)
    assert program == "treeadv" and args.resume_or_start
    return args.config


@pytest.mark.parametrize("values", VALUES)
def test_mounts_name_volumes_and_the_head_finds_the_configuration_where_the_entrypoint_reads_it(render: Render, values: str) -> None:
    documents = render(values)
    for template in pod_templates(documents).values():
        volumes = {v["name"] for v in template["spec"]["volumes"]}
        assert {m["name"] for c in template["spec"]["containers"] for m in c["volumeMounts"]} == volumes
    head = pod_templates(documents)["head"]["spec"]
    (mount,) = (m["mountPath"] for m in head["containers"][0]["volumeMounts"] if m["name"] == "config")
    for job in (d for d in documents if d["kind"] == "RayJob"):
        assert trains(job["spec"]["entrypoint"]) == Path(mount) / "config.yaml"


@pytest.mark.parametrize("values", VALUES)
def test_a_ray_pod_leaves_through_the_drain_command_within_its_grace(render: Render, values: str) -> None:
    cluster = ray_cluster(render(values))["spec"]
    templates = {"driver": [cluster["headGroupSpec"]["template"]], "node": [g["template"] for g in cluster["workerGroupSpecs"]]}
    for what, pods in templates.items():
        for pod in pods:
            line = pod["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
            assert line[:3] == ["python", "-m", "actors.driver.drain"]
            args = drain.parse_arguments(line[3:])
            assert args.what == what
            assert 0 < args.seconds < pod["spec"]["terminationGracePeriodSeconds"]


@pytest.mark.parametrize("values", VALUES)
def test_budgets_and_policies_select_pods_that_exist(render: Render, values: str) -> None:
    documents = render(values)
    labels = [t["metadata"]["labels"] for t in pod_templates(documents).values()]
    least = {"head": 1}
    for group in ray_cluster(documents)["spec"]["workerGroupSpecs"]:
        role = group["template"]["metadata"]["labels"]["treeadv/role"]
        least[role] = least.get(role, 0) + group["minReplicas"]
    for document in documents:
        if document["kind"] == "PodDisruptionBudget":
            wanted = document["spec"]["selector"]["matchLabels"]
            assert any(wanted.items() <= have.items() for have in labels), wanted
            assert ("minAvailable" in document["spec"]) != ("maxUnavailable" in document["spec"])  # the API server takes one
            assert document["spec"].get("minAvailable", 0) <= least.get(wanted["treeadv/role"], 0)
        if document["kind"] == "NetworkPolicy":
            assert all(document["spec"]["podSelector"]["matchLabels"].items() <= have.items() for have in labels)


def opened(documents: list[dict[str, Any]], address: str) -> set[int]:
    """Ports of an address outside of the cluster that the policy lets pods reach."""
    rules = one(documents, "NetworkPolicy")["spec"]["egress"]
    here = [r for r in rules if "to" not in r or any(address == t.get("ipBlock", {}).get("cidr", "").removesuffix("/32") for t in r["to"])]
    return {p["port"] for r in here for p in r["ports"]} - {53}


def test_a_policy_shuts_the_clouds_identity_until_it_is_opened(render: Render) -> None:
    for address, port in (("169.254.169.254", 80), ("169.254.169.252", 988), ("169.254.170.23", 80)):
        assert opened(render("minimal"), address) == {443, 6443}
        assert opened(render("cloud-identity"), address) >= {443, 6443, port}


@pytest.mark.parametrize("values", ["fixed", "fleet-keda"])
def test_the_monitor_scrapes_ports_that_pods_declare(render: Render, values: str, tmp_path: Path) -> None:
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


def test_keda_counts_what_the_monitor_labels(render: Render) -> None:
    documents = render("fleet-keda")
    query = one(documents, "ScaledObject")["spec"]["triggers"][0]["metadata"]["query"]
    (matcher,) = (m for m in promql_parser.parse(query).expr.matchers.matchers if m.name == "run")
    assert matcher.value == "run1"
    sglang = next(e for e in one(documents, "PodMonitor")["spec"]["podMetricsEndpoints"] if e["port"] == "sglang")
    (source,) = (r["sourceLabels"] for r in sglang["relabelings"] if r["targetLabel"] == "run")
    fleet = one(documents, "Deployment", "run1-treeadv-fleet")["spec"]["template"]["metadata"]["labels"]
    assert source == ["__meta_kubernetes_pod_label_app_kubernetes_io_instance"]
    assert fleet["app.kubernetes.io/instance"] == matcher.value


def test_rules_and_dashboards_reach_the_cluster_unchanged(render: Render) -> None:
    documents = render("fixed")
    rules = yaml.safe_load((CHART / "files" / "rules" / "treeadv.yml").read_text())
    assert one(documents, "PrometheusRule")["spec"] == rules
    shipped = {k: v for d in documents if "-dashboard-" in d["metadata"]["name"] for k, v in d["data"].items()}
    assert {k: json.loads(v) for k, v in shipped.items()} == {
        p.name: json.loads(p.read_text()) for p in (CHART / "files" / "dashboards").glob("*.json")
    }
    assert shipped


FLEET = ["generator.kind=deployment", "config.model.path=/data/models/m"]
BAD = {
    "an unknown value": (["replica=3"], "replica"),
    "an unknown worker field": (["workers.generator.replica=3"], "replica"),
    "an unknown key of the configuration": (["config.sampling.leafs=3"], "leafs"),
    "a wrong value of the configuration": (["config.sampling.leaves=0"], "leaves"),
    "a key that the chart derives": (["config.generator.count=3"], "count"),
    "a negative number": (["workers.generator.replicas=-1"], "replicas"),
    "a fraction of a core": (["head.cpu=0.5"], "cpu"),
    "an unknown mode": (["mode=serve"], "mode"),
    "a preset that there is not": (["config.learner.preset=tree"], "preset"),
    "reasoning-gym without families": (["config.task.families=null"], "families"),
    "a prompt without the problem": (["config.task.prompt=Solve it."], "prompt"),
    "a section that is null": (["config.sampling=null"], "sampling"),
    "a list that is null": (["storage.claim.accessModes=null"], "accessModes"),
    "a secret list that is null": (["existingSecrets=null"], "existingSecrets"),
    "a number that is null": (["head.cpu=null"], "cpu"),
    "a Ray that the package does not go with": (["rayVersion=2.40.0"], "rayVersion"),
    "min over max": (["workers.generator.minReplicas=9"], "workers.generator.minReplicas=9 is more than maxReplicas=4"),
    "replicas over max": (["workers.generator.replicas=9"], "workers.generator.replicas=9 lies outside minReplicas=1..maxReplicas=4"),
    "a learner that would be scaled away": (["workers.learner.maxReplicas=2"], "a learner group needs replicas = minReplicas"),
    "shared memory as large as the memory": (["head.shm=8Gi"], "head.shm=8Gi is not less than memory=8Gi"),
    "shared memory larger in another unit": (["workerDefaults.shm=4500M"], "workers.reward.shm=4500M is not less than memory=4Gi"),
    "shared memory that Ray cannot use": (["workers.reward.shm=64Mi"], "workers.reward.shm=64Mi: Ray's object store"),
    "a GPU that the embedded engine cannot use": (
        ["workers.generator.gpu=1"], "workers.generator.gpu=1: the embedded engine draws on the CPU; set config.generator.engine=sglang, or"
    ),
    "a GPU beside a fleet": (
        [*FLEET, "workers.generator.gpu=1"], "workers.generator.gpu=1: beside generator.kind=deployment the servers draw"
    ),
    "a GPU that grades": (["workers.reward.gpu=1"], "workers.reward.gpu=1: a reward actor uses no GPU"),
    "GPUs that do not go into the slots": (
        ["workers.learner.gpu=3", "workers.learner.slots=2"], "workers.learner.gpu=3 cannot be shared by slots=2"
    ),
    "slots that do not go into the GPUs": (
        ["workers.learner.gpu=2", "workers.learner.slots=3"], "workers.learner.gpu=2 cannot be shared by slots=3"
    ),
    "a role half on GPUs": (
        [
            *("config.generator.engine=sglang", "workers.generator.gpu=1", "workers.more.role=generator", "workers.more.replicas=1"),
            *("workers.more.minReplicas=1", "workers.more.maxReplicas=1", "workers.more.cpu=1", "workers.more.memory=4Gi"),
        ],
        "workers.generator.gpu=1 beside another generator group without a GPU",
    ),
    "a group with the name of the head's": (
        [f"workers.headgroup.{v}" for v in ("role=reward", "replicas=0", "minReplicas=0", "maxReplicas=1", "cpu=1", "memory=4Gi")],
        "workers.headgroup: KubeRay calls the head's own group so",
    ),
    "no learner": (["workers.learner=null"], "no group gives a learner"),
    "no storage": (["storage.claim.size="], "queue and checkpoints have no place"),
    "two claims": (["storage.claim.existing=x"], "storage.claim.size=1Gi has no effect beside storage.claim.existing=x"),
    "a claim beside an object store": (["storage.uri=s3://b/runs"], "storage.uri=s3://b/runs does not go with storage.claim (1Gi)"),
    "an object store that is none": (["storage.claim.size=", "storage.uri=bucket/runs"], "uri"),
    "a place of the run set twice": (["config.run.storage=s3://b/runs"], "storage"),
    "a fleet without a volume": (
        [*FLEET, "storage.claim.size=", "storage.uri=s3://b/runs"],
        "generator.kind=deployment does not go with storage.uri=s3://b/runs",
    ),
    "a folder of runs outside the claim": (["config.run.root=s3://bucket/runs"], "root"),
    "a fleet without a model that it could load": (
        ["generator.kind=deployment"], "config.model.path=smollm2-135m-instruct does not go with generator.kind=deployment"
    ),
    "a fleet with another model than the run": (["generator.fleet.model=m"], "model"),
    "shared memory of a server as large as its memory": ([*FLEET, "generator.fleet.shm=64Gi"], "generator.fleet.shm=64Gi is not less than"),
    "a fleet beside an embedded engine": (
        [*FLEET, "config.generator.engine=embedded"],
        "config.generator.engine=embedded does not go with",
    ),
    "more generators than drive a fleet": (
        [*FLEET, "workers.generator.replicas=3"],
        "3 generators beside generator.kind=deployment; one drives all servers",
    ),
    "KEDA without Prometheus": (
        [*FLEET, "generator.fleet.autoscaling.kind=keda"],
        "needs generator.fleet.autoscaling.prometheus",
    ),
    "KEDA without the label that it counts by": (
        [*FLEET, "generator.fleet.autoscaling.kind=keda", "generator.fleet.autoscaling.prometheus=http://p"],
        "set monitoring.podMonitor.enabled=true",
    ),
    "a drain as long as the grace": (
        [*FLEET, "generator.fleet.drainSeconds=300"],
        "leaves nothing of graceSeconds=300",
    ),
}


@pytest.mark.parametrize("version", HELMS)
@pytest.mark.parametrize("case", BAD)
def test_bad_values_are_refused_with_their_name(helm: Any, case: str, version: str) -> None:
    changes, message = BAD[case]
    sets = [part for change in ["storage.claim.size=1Gi", *changes] for part in ("--set", change)]
    out = helm("template", "run1", str(CHART), *sets, version=version)
    assert out.returncode == 1
    assert message in out.stderr


def test_an_old_kubernetes_is_refused(helm: Any) -> None:
    out = helm("template", "run1", str(CHART), "--set", "storage.claim.size=1Gi", "--kube-version", "1.29.0")
    assert out.returncode == 1 and "kubeVersion" in out.stderr


@pytest.mark.parametrize("values", VALUES)
def test_the_notes_say_how_to_follow_or_start_the_run(helm: Any, values: str) -> None:
    out = helm("install", "run1", str(CHART), "-n", "rl", "-f", str(CHART / "ci" / f"{values}.yaml"), "--dry-run=client")
    assert out.returncode == 0, out.stderr
    notes = out.stdout.split("NOTES:")[1]
    (start,) = re.findall(r"Start or resume: .*", notes) or [""]
    assert ("logs -f -l job-name=run1-treeadv" in notes) != bool(start)
    if start:  # in the background: what an exec holds ends with its connection
        _, submit, entrypoint = start.split(" -- ")
        assert submit.startswith("ray job submit ") and submit.endswith(" --no-wait")
        assert trains(entrypoint) == Path("/etc/treeadv/config.yaml")


def printed() -> list[str]:
    """Every `helm install` that the documents print."""
    text = "".join((ROOT / name).read_text() for name in ("README.md", "docs/kubernetes.md"))
    return re.findall(r"helm install [^`#\n]+", text)


def test_every_installation_that_the_documents_print_renders(helm: Any) -> None:
    assert len(printed()) >= 3
    for line in printed():
        words = shlex.split(line.replace("helm/treeadv", str(CHART)).replace("helm install", "helm template"))[1:]
        out = helm(*[word for word in words if word != "--create-namespace"])
        assert out.returncode == 0, f"{line}: {out.stderr}"
        assert "REGISTRY/treeadv" in out.stdout, f"{line}: names no image that a cluster could pull"


def test_the_schema_misses_every_value_that_was_set_to_null() -> None:
    """Helm takes a null as an order to delete the default, so that only what is required is missed."""

    def look(part: dict[str, Any], values: dict[str, Any]) -> None:
        if part.get("additionalProperties") is False:
            assert part["required"] == list(values)
            for key, value in values.items():
                if isinstance(value, dict):
                    look(part["properties"][key], value)

    whole = json.loads(schema.SCHEMA.read_text())
    look(whole, yaml.safe_load((CHART / "values.yaml").read_text()))


def test_the_schema_carries_the_configuration_of_the_package() -> None:
    text = schema.SCHEMA.read_text()
    assert schema.generated(text) == text, "run: python -m deploy.schema"


def test_the_readme_tells_the_values(node: Path, tmp_path: Path) -> None:
    readme = CHART / "README.md"
    again = tmp_path / "README.md"
    again.write_text(readme.read_text())
    getnode.write_readme(node, CHART / "values.yaml", again)
    assert again.read_text() == readme.read_text(), "run: python -m deploy.getnode --readme"


def test_the_package_carries_rules_and_dashboards_and_renders_the_same(helm: Any, render: Render, tmp_path: Path) -> None:
    out = helm("package", str(CHART), "-d", str(tmp_path))
    assert out.returncode == 0, out.stderr
    (package,) = tmp_path.glob("*.tgz")
    values = str(CHART / "ci" / "fixed.yaml")
    packed = helm("template", "run1", str(package), "-n", "rl", "-f", values, "--kube-version", "1.34.0")
    assert [d for d in yaml.safe_load_all(packed.stdout) if d] == render("fixed")
