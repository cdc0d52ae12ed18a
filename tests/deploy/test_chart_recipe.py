"""Tests that the chart checks a plain recipe and names the fields that it replaces, and that the user's files and
additions reach the pods."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from deploy import schema
from tests.deploy.manifests import CHART, ROOT, Helm, Render, one, pod_templates, ray_cluster, run_config
from treeadv.config import load
from treeadv.errors import BadInput

RECIPES = ROOT / "deploy" / "recipes"
STORAGE = ("--set", "storage.claim.size=1Gi")
TASK = "task: {source: reasoning-gym, families: [{name: chain_sum}]}\n"
# Name of a case -> (a bad recipe, a part of the error message)
BAD = {
    "an unknown section": ("train: {lr: 1}", "train is unknown; the known keys here are eval, generator,"),
    "an unknown field": ("learner: {lrr: 1}", "learner.lrr is unknown; the known keys here are"),
    "a text for a number": ("learner: {lr: fast}", 'learner.lr="fast" is not of type number'),
    "a fraction for a whole number": ("sampling: {leaves: 2.5}", "sampling.leaves=2.5 is not of type integer"),
    "a number below the least": ("sampling: {leaves: 0}", "sampling.leaves=0 is less than"),
    "a number at an open bound": ("sampling: {temperature: 0}", "sampling.temperature=0 is not more than 0"),
    "a number above the most": ("run: {stop_at: 2}", "run.stop_at=2 is more than 1"),
    "an unknown choice": ("learner: {dtype: int4}", "learner.dtype=int4 is none of"),
    "an unknown name": ("learner: {preset: tree}", "learner.preset=tree is none of"),
    "a list too short": ("learner: {correction_bounds: [1]}", "learner.correction_bounds has 1 entries and needs 2"),
    "a bad entry of a list": ("task: {source: reasoning-gym, families: [{}]}", "task.families[0].name is missing"),
    "a prompt without the problem": (
        "task: {source: reasoning-gym, families: [{name: a}], prompt: Solve.}",
        'task.prompt="Solve." does not match',
    ),
    "no families": ("task: {source: reasoning-gym}", "task.families is missing"),
    "no task": ("learner: {lr: 0.1}", "task: the run needs one"),
    "a list in place of sections": ("- a\n- b\n", "recipe: not a YAML mapping of sections"),
    "an empty section": (TASK + "learner:\n", "recipe: learner is empty"),
    "no YAML": ("task: {source: x", "recipe: not a YAML mapping of sections"),
    "a device that no pod has": (TASK + "learner: {device: cuda}", "recipe: learner uses a GPU, and no pod"),
    "a relative file": ("task: {source: train.jsonl}", "task.source=train.jsonl is a relative path"),
    "a relative file among sources": (
        "task: {sources: [{source: data/a.parquet}]}",
        "task.sources[0].source=data/a.parquet is a relative path",
    ),
}


def installed(helm: Helm, recipe: Path, *more: str) -> tuple[str, list[dict[str, Any]]]:
    """Return the notes and the manifests of an installation with a recipe."""
    line = ("run1", str(CHART), "--set-file", f"recipe={recipe}", *more)
    out = helm("install", *line, "--dry-run=client")
    assert out.returncode == 0, out.stderr
    manifests, notes = out.stdout.split("MANIFEST:")[1].split("NOTES:")
    return notes, [d for d in yaml.safe_load_all(manifests) if d]


@pytest.mark.parametrize("case", BAD)
def test_bad_recipe_is_refused_with_one_line(helm: Helm, tmp_path: Path, case: str) -> None:
    text, message = BAD[case]
    recipe = tmp_path / "my.yaml"
    recipe.write_text(text if "task" in text or "task" in message or text.startswith("-") else TASK + text)
    out = helm("template", "run1", str(CHART), "--set-file", f"recipe={recipe}", *STORAGE)
    assert out.returncode == 1
    (line,) = (line for line in out.stderr.splitlines() if line.startswith("Error:"))
    assert message in line


@pytest.mark.parametrize("name", ["laptop", "qwen3-8b"])
def test_plain_recipe_becomes_the_configuration(helm: Helm, tmp_path: Path, name: str) -> None:
    gpus = [f"workers.{role}.gpu=1" for role in ("generator", "learner")] if name == "qwen3-8b" else []
    sets = [word for value in gpus for word in ("--set", value)]
    _, documents = installed(helm, RECIPES / f"{name}.yaml", *STORAGE, *sets)
    plain, ours = load(RECIPES / f"{name}.yaml"), run_config(documents, tmp_path)
    assert (ours.task, ours.sampling, ours.model.path) == (plain.task, plain.sampling, plain.model.path)
    assert (ours.learner.lr, ours.learner.device) == (plain.learner.lr, plain.learner.device)
    assert ours.generator.sglang.args == plain.generator.sglang.args


def test_pods_of_a_size_hold_the_actors_of_its_recipe(helm: Helm, tmp_path: Path) -> None:
    size = CHART / "sizes" / "qwen3-8b.yaml"
    _, documents = installed(helm, RECIPES / "qwen3-8b.yaml", "-f", str(size), *STORAGE)
    plain, ours = load(RECIPES / "qwen3-8b.yaml"), run_config(documents, tmp_path)
    for role in ("generator", "learner", "reward"):
        expected, got = getattr(plain, role), getattr(ours, role)
        assert (got.count, getattr(got, "gpus", 0)) == (expected.count, getattr(expected, "gpus", 0))


def test_config_overrides_the_recipe_and_notes_name_the_replaced(helm: Helm, tmp_path: Path) -> None:
    """Values of `config` override the recipe, and a list replaces a list. The chart's own fields override both."""
    recipe = tmp_path / "my.yaml"
    families = "[{name: chain_sum}, {name: products}]"
    recipe.write_text(
        f"task: {{source: reasoning-gym, families: {families}}}\nrun: {{name: mine, steps: 7}}\nreward: {{count: 9}}\n"
    )
    over = ("--set", "config.task.families[0].name=basic_arithmetic", "--set", "config.sampling.leaves=4")
    notes, documents = installed(helm, recipe, *STORAGE, *over)
    config = run_config(documents, tmp_path)
    assert [f.name for f in config.task.families] == ["basic_arithmetic"]
    assert (config.run.steps, config.sampling.leaves) == (7, 4)
    assert (config.run.name, config.reward.count) == ("run1", 1)
    assert re.findall(r"^  (\S+)=(.*) became (.*)$", notes, re.MULTILINE) == [
        ("reward.count", "9", "1"),
        ("run.name", '"mine"', '"run1"'),
    ]


def test_template_knows_every_keyword_of_the_schema() -> None:
    """The template can check a rule of the schema only if it knows the keyword of the rule."""
    template = (CHART / "templates" / "_recipe.tpl").read_text()
    known = {"$ref", "additionalProperties", "properties", "items", "then", "$defs"} | {
        w for w in re.findall(r"[\w$]+", template)
    }
    whole = json.loads(schema.recipe())

    def words(schema: Any, names: bool = False) -> set[str]:
        if isinstance(schema, list):
            return set().union(*map(words, schema))
        if not isinstance(schema, dict):
            return set()
        own = set() if names else set(schema)
        return own.union(*(words(v, not names and k in ("properties", "$defs")) for k, v in schema.items()))

    assert words(whole) <= known


def test_bad_recipes_are_bad_for_an_independent_checker() -> None:
    """The template is the project's own checker of JSON schemas. The library jsonschema must refuse the same
    recipes."""
    validator = jsonschema.Draft202012Validator(json.loads(schema.recipe()))
    beyond = ("a list in place", "an empty section", "no YAML", "a device", "a relative")  # not covered by the schema
    for name, (text, message) in BAD.items():
        if not name.startswith(beyond):
            recipe = yaml.safe_load(text if "task" in text or "task" in message else TASK + text)
            assert not validator.is_valid(recipe), name


@pytest.mark.parametrize("name", sorted(p.stem for p in RECIPES.glob("*.yaml")))
def test_schema_of_a_recipe_accepts_our_recipes(name: str) -> None:
    jsonschema.validate(yaml.safe_load((RECIPES / f"{name}.yaml").read_text()), json.loads(schema.recipe()))


def test_whole_recipe_of_a_pod_is_accepted_by_the_loader(render: Render, tmp_path: Path) -> None:
    config = run_config(render("additions"), tmp_path)
    assert (config.sampling.leaves, config.sampling.trees) == (8, 4)
    (tmp_path / "bad.yaml").write_text("task: {source: x.jsonl}\nlearner: {lrr: 1}\n")
    with pytest.raises(BadInput, match="lrr"):
        load(tmp_path / "bad.yaml")


def test_own_files_and_additions_reach_the_pods(render: Render) -> None:
    documents = render("additions")
    files = one(documents, "ConfigMap", "run1-treeadv-files")["data"]
    assert "def judge" in files["my_reward.py"]
    for name, template in pod_templates(documents).items():
        if name == "submitter":
            continue
        pod = template["spec"]
        main = pod["containers"][0]
        env = {e["name"]: e.get("value") for e in main["env"]}
        mounts = {m["mountPath"]: m["name"] for m in main["volumeMounts"]}
        volumes = {v["name"]: v for v in pod["volumes"]}
        assert volumes[mounts["/files"]]["configMap"]["name"] == "run1-treeadv-files"
        assert (env["PYTHONPATH"], env["NCCL_DEBUG"]) == ("/files", "WARN")
        assert ("NCCL_SOCKET_IFNAME" in env) == (name == "learner")
        assert {"configMapRef": {"name": "proxy"}} in main["envFrom"]
        assert [c["name"] for c in pod["initContainers"]] == ["fetch"]
        assert mounts["/problems"] == "problems"
        assert ("/prompts" in mounts) == (name != "head")
        assert pod["runtimeClassName"] == ("nvidia" if name in ("generator", "learner") else "gvisor")


def test_labels_of_the_ray_resource_name_the_queue(render: Render) -> None:
    metadata = one(render("additions"), "RayJob")["metadata"]
    assert metadata["labels"]["kueue.x-k8s.io/queue-name"] == "rl"
    assert metadata["labels"]["app.kubernetes.io/instance"] == "run1"
    assert metadata["annotations"] == {"team.example/owner": "rl"}


def test_mig_partition_is_counted_as_a_gpu(render: Render) -> None:
    groups = {g["groupName"]: g for g in ray_cluster(render("additions"))["spec"]["workerGroupSpecs"]}
    limits = groups["generator"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/mig-3g.40gb"] == "1"
    assert groups["generator"]["rayStartParams"]["num-gpus"] == "1"
    assert "num-gpus" not in groups["learner"]["rayStartParams"]


def own_names(documents: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Return (setting, key) of every name that the chart renders into a map or a list that users can extend."""
    found = {("rayLabels", key) for d in documents if d["kind"] == "RayJob" for key in d["metadata"]["labels"]}
    for kind, value in (("PodMonitor", "podMonitor"), ("PrometheusRule", "rules")):
        found |= {(f"monitoring.{value}.labels", key) for key in one(documents, kind)["metadata"]["labels"]}
    for name, template in pod_templates(documents).items():
        if name == "submitter":
            continue
        main, group = template["spec"]["containers"][0], "head" if name == "head" else f"workers.{name}"
        found |= {("podLabels", key) for key in template["metadata"]["labels"]}
        found |= {("podAnnotations", key) for key in template["metadata"]["annotations"]}
        for value, items, key in (
            ("extraEnv", main["env"], "name"),
            ("extraVolumes", template["spec"]["volumes"], "name"),
            ("extraVolumeMounts", main["volumeMounts"], "mountPath"),
            ("initContainers", [main], "name"),
        ):
            found |= {(f"{group}.{value}", item[key]) for item in items if name in ("head", "learner")}
    return sorted(found)


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_name_that_the_chart_sets_is_refused(helm: Helm, render: Render, tmp_path: Path, every: bool) -> None:
    """A user sets a name that the chart also sets. The rendering must fail, and the message must name the value and the
    key. The fast tests take only the first name of each value."""
    plain = yaml.safe_load((CHART / "ci" / "fixed.yaml").read_text())
    ours = {("podLabels", "team"), ("podAnnotations", "note")}  # names that the user of the example sets
    names = [n for n in own_names(render("fixed")) if n not in ours]
    assert len(names) > 30
    for setting, key in names if every else {setting: (setting, key) for setting, key in names}.values():
        *groups, value = setting.split(".")
        values = json.loads(json.dumps(plain))
        place = values
        for name in groups:
            place = place.setdefault(name, {})
        field = "mountPath" if value == "extraVolumeMounts" else "name"
        entry = {"name": "tmp", field: key}
        place[value] = {key: "x"} if value.lower().endswith(("labels", "annotations")) else [entry]
        file = tmp_path / "values.yaml"
        file.write_text(yaml.safe_dump(values))
        out = helm("template", "run1", str(CHART), "-f", str(file), "--kube-version", "1.34.0")
        assert out.returncode == 1, (setting, key)
        assert f"{setting}: " in out.stderr and key in out.stderr, (setting, key, out.stderr)


def test_name_given_twice_by_the_user_is_refused(helm: Helm) -> None:
    twice = ["extraEnv[0].name=A", "extraEnv[0].value=x", "head.extraEnv[0].name=A", "head.extraEnv[0].value=y"]
    sets = [word for value in twice for word in ("--set", value)]
    out = helm("template", "run1", str(CHART), "-f", str(CHART / "ci" / "minimal.yaml"), *sets)
    assert "head.extraEnv: name A is set by extraEnv too; remove one of them" in out.stderr
