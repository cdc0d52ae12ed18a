"""The servers of `generator.kind: deployment` are ones that the run's generator would take."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.manifests import CHART, Render, pod_templates, run_config
from tests.engines.helpers import STUBS
from treeadv.config import Config
from treeadv.engines.sglang.server import arguments, environment, free_port

FLEETS = ("fleet-hpa", "fleet-keda")
needs_sglang = pytest.mark.skipif(importlib.util.find_spec("sglang") is None, reason="SGLang is not installed (make sglang-cpu)")


def server(documents: list[dict[str, Any]]) -> dict[str, Any]:
    return pod_templates(documents)["run1-treeadv-fleet"]["spec"]["containers"][0]


def flags(line: list[str]) -> dict[str, str]:
    """Flag -> value of a command line, in either way of writing them."""
    words = [word for part in line for word in (part.split("=", 1) if part.startswith("--") else [part])]
    found: dict[str, str] = {}
    for word in words:
        if word.startswith("--"):
            found[word] = ""
        else:
            found[list(found)[-1]] = word
    return found


@pytest.mark.parametrize("values", FLEETS)
def test_a_server_of_the_fleet_gets_the_command_line_that_a_generator_gives_its_own(render: Render, values: str, tmp_path: Path) -> None:
    config = run_config(render(values), tmp_path)
    own = arguments(config.generator, config.model.path, 30000)
    assert flags(server(render(values))["args"]) == flags(own) | {"--host": "0.0.0.0"}


def test_where_entropies_are_bounds_the_server_needs_no_processor(helm: Any) -> None:
    lower = ("--set", "config.generator.sglang.entropy=lower")
    out = helm("template", "run1", str(CHART), "-f", str(CHART / "ci" / "fleet-hpa.yaml"), *lower, "--show-only", "templates/fleet.yaml")
    assert "--dtype=float32" in out.stdout and "custom-logit-processor" not in out.stdout and "overlap-schedule" not in out.stdout


@pytest.mark.parametrize("values", FLEETS)
def test_servers_and_router_run_from_the_image_of_the_run_which_holds_treeadv(render: Render, values: str) -> None:
    pods = pod_templates(render(values))
    images = {c["image"] for pod in pods.values() for c in pod["spec"]["containers"]}
    assert len(images) == 1


@pytest.mark.parametrize("values", FLEETS)
def test_a_server_without_a_gpu_gets_the_variables_of_a_generators_own(render: Render, values: str, tmp_path: Path) -> None:
    config = run_config(render(values), tmp_path)
    given = {e["name"]: e["value"] for e in server(render(values))["env"]}
    assert (given.get("SGLANG_USE_CPU_ENGINE") == "1") == (config.generator.sglang.device == "cpu")
    assert given.get("PYTHONPATH", config.generator.sglang.stubs) == config.generator.sglang.stubs
    assert ("PYTHONPATH" in given) == (config.generator.sglang.device == "cpu")


def here(config: Config, url: str, root: Path, model: Path) -> Config:
    """The configuration of the run with the places of this machine."""
    tree = config.model_dump(mode="json")
    tree["run"]["root"], tree["model"]["path"], tree["generator"]["threads"] = str(root), str(model), 1
    tree["generator"]["sglang"] |= {"url": url, "stubs": str(STUBS), "start_timeout": 200.0}
    return Config.model_validate(tree)


@pytest.mark.sglang
@needs_sglang
def test_sglang_and_its_router_take_the_command_lines_of_the_fleet(render: Render, tmp_path: Path) -> None:
    lines = [server(render(values))["args"] for values in FLEETS]
    router = pod_templates(render("fleet-keda"))["run1-treeadv-router"]["spec"]["containers"][0]["args"]
    script = f"""
import argparse
from sglang.srt.server_args import ServerArgs
from sglang_router.launch_router import parse_router_args
parser = argparse.ArgumentParser()
ServerArgs.add_cli_args(parser)
for line in {lines!r}:
    read = parser.parse_args(line)
    print(read.device, read.dtype)
print(parse_router_args({router!r}).selector)
"""
    added = environment(here(run_config(render("fleet-hpa"), tmp_path), "", tmp_path, tmp_path).generator.sglang, 1)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=os.environ | added, timeout=200)
    assert done.stdout.splitlines() == [
        "cpu float32", "cuda bfloat16", "{'app.kubernetes.io/instance': 'run1', 'treeadv/role': 'fleet'}"
    ], done.stderr


@pytest.mark.slow
@pytest.mark.sglang
@needs_sglang
def test_the_generator_takes_a_server_that_was_started_as_the_chart_starts_it(render: Render, tmp_path: Path, tiny_model: Path) -> None:
    """The real server with the rendered command line and variables, and the run's own first look at it: flags, tokenizer, numbers."""
    from treeadv.engines.sglang.engine import SGLangEngine

    documents, port = render("fleet-hpa"), free_port()
    config = here(run_config(documents, tmp_path), f"http://127.0.0.1:{port}", tmp_path, tiny_model)
    container = server(documents)
    places = {"--model-path": str(tiny_model), "--port": str(port), "--host": "127.0.0.1"}
    line = [f"{flag}={value}" if value else flag for flag, value in (flags(container["args"]) | places).items()]
    variables = {e["name"]: e["value"] for e in container["env"]} | {"PYTHONPATH": str(STUBS), "HOME": str(tmp_path)}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, *container["command"][1:], *line], env=os.environ | variables, stdout=log, stderr=log, start_new_session=True
        )

    async def look() -> None:
        await (await SGLangEngine.create(config, str(tiny_model), 0)).close()

    try:
        asyncio.run(look())
    except Exception as fault:
        fault.add_note((tmp_path / "log").read_text()[-3000:])
        raise
    finally:
        os.killpg(process.pid, 9)
        process.wait()
