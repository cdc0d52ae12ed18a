"""Tests the values of the chart: bad values are refused, and the schema, the README, the notes and the documents match
the values."""

from __future__ import annotations

import json
import re
import shlex
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy import getnode, schema
from tests.deploy import schemas
from tests.deploy.manifests import CHART, ROOT, VALUES, Helm, Render, sets, train_config

FLEET = ["generator.kind=deployment", "config.model.path=/data/models/m"]
# Helm 3 names the place of a value that the schema refuses, and not the value.
BAD = {
    "an unknown value": (["replica=3"], "replica"),
    "an unknown worker field": (["workers.generator.replica=3"], "replica"),
    "an unknown key of the configuration": (["config.sampling.leafs=3"], "leafs"),
    "a wrong value of the configuration": (["config.sampling.leaves=0"], "leaves"),
    "a key that the chart derives": (["config.generator.count=3"], "count"),
    "a negative number": (["workers.generator.replicas=-1"], "replicas"),
    "a fraction of a core": (["head.cpu=0.5"], "cpu"),
    "an unknown mode": (["mode=serve"], "mode"),
    "an unknown preset": (["config.learner.preset=tree"], "preset"),
    "reasoning-gym without families": (["config.task.families=null"], "families"),
    "a relative data file": (
        ["config.task.source=data/train.jsonl"],
        "task.source=data/train.jsonl is a relative path",
    ),
    "a relative model": (["config.model.path=models/m"], "model.path=models/m is a relative path"),
    "a file name with a folder": (["files.a/b=x"], "a/b"),
    "an environment variable with a hyphen": (["extraEnv[0].name=A-B"], {"helm3": "extraEnv.0.name", "helm4": "A-B"}),
    "a GPU resource that is none": (
        ["workers.learner.gpuResource=example.com/tpu"],
        {"helm3": "workers.learner.gpuResource", "helm4": "example.com/tpu"},
    ),
    "several MIG partitions for a process": (
        ["workers.learner.gpuResource=nvidia.com/mig-1g.10gb", "workers.learner.gpu=2"],
        "workers.learner.gpu=2 with gpuResource=nvidia.com/mig-1g.10gb: a process uses one MIG partition",
    ),
    "a queue of Kueue with the autoscaler": (
        [r"rayLabels.kueue\.x-k8s\.io/queue-name=rl"],
        "kueue.x-k8s.io/queue-name with autoscaling.enabled=true",
    ),
    "a mount without its volume": (
        ["extraVolumeMounts[0].name=x", "extraVolumeMounts[0].mountPath=/x"],
        "x at /x: these pods have no volume of this name",
    ),
    "a prompt without the problem": (["config.task.prompt=Solve it."], "prompt"),
    "a section that is null": (["config.sampling=null"], "sampling"),
    "a list that is null": (["storage.claim.accessModes=null"], "accessModes"),
    "a secret list that is null": (["existingSecrets=null"], "existingSecrets"),
    "a number that is null": (["head.cpu=null"], "cpu"),
    "a Ray version that the package does not support": (["rayVersion=2.40.0"], "rayVersion"),
    "minReplicas above maxReplicas": (
        ["workers.generator.minReplicas=9"],
        "workers.generator.minReplicas=9 is more than maxReplicas=4",
    ),
    "replicas above maxReplicas": (
        ["workers.generator.replicas=9"],
        "workers.generator.replicas=9 is outside minReplicas=1..maxReplicas=4",
    ),
    "a learner group with a range of replicas": (
        ["workers.learner.maxReplicas=2"],
        "a learner group needs replicas = minReplicas",
    ),
    "shm equal to the memory": (["head.shm=8Gi"], "head.shm=8Gi is not less than memory=8Gi"),
    "shm above the memory in another unit": (
        ["workerDefaults.shm=4500M"],
        "workers.reward.shm=4500M is not less than memory=4Gi",
    ),
    "shm below the smallest object store": (["workers.reward.shm=64Mi"], "workers.reward.shm=64Mi: Ray's object store"),
    "a generator GPU with a fleet": (
        [*FLEET, "workers.generator.gpu=1"],
        "workers.generator.gpu=1: with generator.kind=deployment only the servers",
    ),
    "a GPU for a reward group": (["workers.reward.gpu=1"], "workers.reward.gpu=1: a reward actor uses no GPU"),
    "more GPUs than slots, not a multiple": (
        ["workers.learner.gpu=3", "workers.learner.slots=2"],
        "workers.learner.gpu=3 cannot be divided among slots=2",
    ),
    "more slots than GPUs, not a multiple": (
        ["workers.learner.gpu=2", "workers.learner.slots=3"],
        "workers.learner.gpu=2 cannot be divided among slots=3",
    ),
    "GPUs in one group of a role only": (
        [
            *(
                "config.generator.engine=sglang",
                "workers.generator.gpu=1",
                "workers.more.role=generator",
                "workers.more.replicas=1",
            ),
            *(
                "workers.more.minReplicas=1",
                "workers.more.maxReplicas=1",
                "workers.more.cpu=1",
                "workers.more.memory=4Gi",
            ),
        ],
        "workers.generator.gpu=1, but another generator group has no GPU",
    ),
    "a worker group with the name of the head group": (
        [
            f"workers.headgroup.{v}"
            for v in ("role=reward", "replicas=0", "minReplicas=0", "maxReplicas=1", "cpu=1", "memory=4Gi")
        ],
        "workers.headgroup: KubeRay reserves this name",
    ),
    "no learner": (["workers.learner=null"], "no group has role learner"),
    "no storage": (["storage.claim.size="], "storage: the run needs one"),
    "two claims": (
        ["storage.claim.existing=x"],
        "storage.claim.size=1Gi and storage.claim.existing=x exclude each other",
    ),
    "a claim and an object store": (
        ["storage.uri=s3://b/runs"],
        "storage.uri=s3://b/runs and storage.claim (1Gi) exclude",
    ),
    "an object store without a scheme": (["storage.claim.size=", "storage.uri=bucket/runs"], "uri"),
    "the storage of the run inside config": (["config.run.storage=s3://b/runs"], "storage"),
    "a fleet without a volume": (
        [*FLEET, "storage.claim.size=", "storage.uri=s3://b/runs"],
        "generator.kind=deployment with storage.uri=s3://b/runs",
    ),
    "the root of the runs inside config": (["config.run.root=s3://bucket/runs"], "root"),
    "a fleet with the packaged model": (
        ["generator.kind=deployment"],
        "config.model.path=smollm2-135m-instruct with generator.kind=deployment",
    ),
    "a model of the fleet": (["generator.fleet.model=m"], "model"),
    "shm of a server equal to its memory": (
        [*FLEET, "generator.fleet.shm=64Gi"],
        "generator.fleet.shm=64Gi is not less than",
    ),
    "a fleet with another engine": (
        [*FLEET, "config.generator.engine=embedded"],
        "config.generator.engine=embedded with generator.kind=deployment",
    ),
    "a fleet with several generators": (
        [*FLEET, "workers.generator.replicas=3"],
        "3 generators with generator.kind=deployment",
    ),
    "KEDA without Prometheus": (
        [*FLEET, "generator.fleet.autoscaling.kind=keda"],
        "set generator.fleet.autoscaling.prometheus",
    ),
    "KEDA without the PodMonitor": (
        [*FLEET, "generator.fleet.autoscaling.kind=keda", "generator.fleet.autoscaling.prometheus=http://p"],
        "set monitoring.podMonitor.enabled=true",
    ),
    "an argument of the servers in two spellings": (
        [*FLEET, "config.generator.sglang.args.max_total_tokens=9", "config.generator.sglang.args.max-total-tokens=8"],
        "generator.sglang.args has max_total_tokens and max-total-tokens, which are one argument",
    ),
    "drainSeconds equal to graceSeconds": (
        [*FLEET, "generator.fleet.drainSeconds=300"],
        "must be less than graceSeconds=300",
    ),
}


@pytest.mark.parametrize("version", [pytest.param("helm3", marks=pytest.mark.slow), "helm4"])
@pytest.mark.parametrize("case", BAD)
def test_bad_value_is_refused_by_name(helm: Helm, case: str, version: str) -> None:
    changes, message = BAD[case]
    out = helm("template", "run1", str(CHART), *sets(changes), version=version)
    assert out.returncode == 1
    assert (message if isinstance(message, str) else message[version]) in out.stderr


def test_old_kubernetes_is_refused(helm: Helm) -> None:
    out = helm("template", "run1", str(CHART), *sets([]), "--kube-version", "1.29.0")
    assert out.returncode == 1 and "kubeVersion" in out.stderr


@pytest.mark.parametrize("values", VALUES)
def test_notes_print_the_command_to_follow_or_start(helm: Helm, values: str) -> None:
    out = helm(
        "install", "run1", str(CHART), "-n", "rl", "-f", str(CHART / "ci" / f"{values}.yaml"), "--dry-run=client"
    )
    assert out.returncode == 0, out.stderr
    notes = out.stdout.split("NOTES:")[1]
    (start,) = re.findall(r"Start or resume: .*", notes) or [""]
    assert ("logs -f -l job-name=run1-treeadv" in notes) != bool(start)
    if start:  # the command must detach, because kubectl exec ends it when the connection closes
        _, submit, entrypoint = start.split(" -- ")
        assert submit.startswith("ray job submit ") and submit.endswith(" --no-wait")
        assert train_config(entrypoint) == Path("/etc/treeadv/config.yaml")


def documented_installations() -> list[str]:
    """Return every installation of the chart that the documents describe."""
    text = "".join((ROOT / name).read_text() for name in ("README.md", "docs/kubernetes.md"))
    return re.findall(r"helm install \S+ helm/treeadv[^`#\n]+", text.replace("\\\n", " "))


def test_each_documented_installation_renders(helm: Helm, tmp_path: Path) -> None:
    """The files that an installation names are those of docs/your-task.md."""
    assert len(documented_installations()) >= 5
    page = (ROOT / "docs" / "your-task.md").read_text()
    for name, content in re.findall(r"^```\w+\n# (\S+\.\w+)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        (tmp_path / name).write_text(content)
    for line in documented_installations():
        line = line.replace("helm/treeadv", str(CHART)).replace("=deploy/", f"={ROOT}/deploy/")
        line = re.sub(r"=(stops\.\w+|my_reward\.py)\b", rf"={tmp_path}/\1", line)
        words = shlex.split(line.replace("helm install", "helm template"))[1:]
        out = helm(*[word for word in words if word != "--create-namespace"])
        assert out.returncode == 0, f"{line}: {out.stderr}"
        assert "REGISTRY/treeadv" in out.stdout, f"{line}: names no image of a registry"


def test_documented_pod_is_valid_and_mounts_the_claim(helm: Helm) -> None:
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    pod = yaml.safe_load(textwrap.dedent(page.partition("   # reader.yaml\n")[2].partition("   ```")[0]))
    schemas.validate(pod, "1.34")
    rendered = helm("template", "try", str(CHART), *sets([])).stdout
    claims = [d["metadata"]["name"] for d in yaml.safe_load_all(rendered) if d["kind"] == "PersistentVolumeClaim"]
    assert [v["persistentVolumeClaim"]["claimName"] for v in pod["spec"]["volumes"]] == claims


def test_null_for_any_value_fails_the_schema() -> None:
    """Helm deletes a default whose value is null. The schema detects this only if it requires the key."""

    def check(schema: dict[str, Any], values: dict[str, Any]) -> None:
        if schema.get("additionalProperties") is False:
            assert set(schema["required"]) == set(values)
            for key, value in values.items():
                if isinstance(value, dict):
                    check(schema["properties"][key], value)

    whole = json.loads(schema.SCHEMA.read_text())
    check(whole, yaml.safe_load((CHART / "values.yaml").read_text()))


def test_schema_matches_the_typed_configuration() -> None:
    text = schema.SCHEMA.read_text()
    assert schema.generated(text) == text, "run: python -m deploy.schema"
    assert schema.recipe() == schema.RECIPE.read_text(), "run: python -m deploy.schema"


def test_readme_table_matches_the_values(node: Path, tmp_path: Path) -> None:
    readme = CHART / "README.md"
    again = tmp_path / "README.md"
    again.write_text(readme.read_text())
    getnode.write_readme(node, CHART / "values.yaml", again)
    assert again.read_text() == readme.read_text(), "run: python -m deploy.getnode --readme"


def test_packaged_chart_renders_the_same(helm: Helm, render: Render, tmp_path: Path) -> None:
    out = helm("package", str(CHART), "-d", str(tmp_path))
    assert out.returncode == 0, out.stderr
    (package,) = tmp_path.glob("*.tgz")
    values = str(CHART / "ci" / "fixed.yaml")
    packed = helm("template", "run1", str(package), "-n", "rl", "-f", values, "--kube-version", "1.34.0")
    assert [d for d in yaml.safe_load_all(packed.stdout) if d] == render("fixed")
