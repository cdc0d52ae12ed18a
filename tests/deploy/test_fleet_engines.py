"""Tests that the chart runs the servers of any engine that a file of `files/servers` describes."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import yaml

from tests.deploy.manifests import CHART, Helm, one, pod_templates, run_config, sets
from treeadv.engines.registry import ENGINES

FLEET = ["generator.kind=deployment", "config.model.path=/data/models/m"]
DICE = """\
config: {}
fleet:
  generator:
    engine: dice.engine:Dice
    engine_options: {url: "http://{{ .router }}:7000"}
required: {}
{{- if .config }}
server:
  name: dice
  port: 7001
  health: /ready
  command: [dice-server]
  arguments: {model: {{ .config.model.path }}, device: {{ .device }}, quiet: true}
  overrides: {}
  env: {SIDES: "6"}
router:
  port: 7000
  metricsPort: 7002
  health: /live
  command: [dice-router]
  args: ["--servers={{ .Release.Name }}"]
requests: dice_requests
{{- end }}
"""


@pytest.fixture
def chart(tmp_path: Path) -> Path:
    """Return a copy of the chart with one more file in `files/servers`."""
    copy = tmp_path / "treeadv"
    shutil.copytree(CHART, copy)
    (copy / "files" / "servers" / "dice.yaml").write_text(DICE)
    return copy


def test_one_file_adds_the_servers_of_an_engine(helm: Helm, chart: Path, tmp_path: Path) -> None:
    scaling = ("kind=keda", "minReplicas=1", "maxReplicas=4", "prometheus=http://p")
    given = [*FLEET, "generator.fleet.engine=dice", *(f"generator.fleet.autoscaling.{value}" for value in scaling)]
    monitored = ["monitoring.podMonitor.enabled=true", "networkPolicy.enabled=true"]
    out = helm("template", "run1", str(chart), *sets([*given, *monitored]))
    assert out.returncode == 0, out.stderr
    documents = [d for d in yaml.safe_load_all(out.stdout) if d]
    pods = pod_templates(documents)
    server = pods["run1-treeadv-fleet"]["spec"]["containers"][0]
    assert server["command"] == ["dice-server"]
    assert server["args"] == ["--device=cuda", "--model=/data/models/m", "--quiet"]
    assert {"name": "SIDES", "value": "6"} in server["env"]
    assert server["ports"] == [{"name": "dice", "containerPort": 7001}]
    assert server["readinessProbe"]["httpGet"] == {"path": "/ready", "port": "dice"}
    router = pods["run1-treeadv-router"]["spec"]["containers"][0]
    assert (router["command"], router["args"]) == (["dice-router"], ["--servers=run1"])
    config = run_config(documents, tmp_path)
    assert config.generator.engine == "dice.engine:Dice"
    assert config.generator.engine_options == {"url": "http://run1-treeadv-router:7000"}
    (trigger,) = one(documents, "ScaledObject")["spec"]["triggers"]
    assert trigger["metadata"]["query"] == 'sum({__name__=~"dice_requests",run="run1"})'
    monitor = one(documents, "PodMonitor")["spec"]["podMetricsEndpoints"]
    assert [e["port"] for e in monitor[-2:]] == ["dice", "router-metrics"]
    allowed = one(documents, "NetworkPolicy")["spec"]["ingress"][-1]["ports"]
    assert [p["port"] for p in allowed[-2:]] == [7001, 7002]
    made = "\n".join(yaml.dump(d) for d in documents if d["kind"] in ("Deployment", "ScaledObject", "NetworkPolicy"))
    assert "sglang" not in made


def test_unknown_engine_of_the_fleet_is_refused(helm: Helm, chart: Path) -> None:
    out = helm("template", "run1", str(chart), *sets([*FLEET, "generator.fleet.engine=vllm"]))
    assert out.returncode != 0
    assert "generator.fleet.engine=vllm: the chart describes servers of dice, sglang" in out.stderr


def test_templates_name_no_engine() -> None:
    names = re.compile("|".join(ENGINES), re.IGNORECASE)
    found = [path.name for path in (CHART / "templates").iterdir() if names.search(path.read_text())]
    assert found == []
