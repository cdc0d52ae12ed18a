"""Tests that the generator of a run accepts the servers of `generator.kind: deployment`."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.manifests import CHART, Helm, Render, pod_templates, run_config
from tests.engines.helpers import STUBS
from treeadv.config import Config
from treeadv.engines.sglang.server import arguments, environment, free_port

FLEETS = ("fleet-hpa", "fleet-keda")
needs_sglang = pytest.mark.skipif(
    importlib.util.find_spec("sglang") is None, reason="SGLang is not installed (make sglang-cpu)"
)


def server(documents: list[dict[str, Any]]) -> dict[str, Any]:
    return pod_templates(documents)["run1-treeadv-fleet"]["spec"]["containers"][0]


def flags(line: list[str]) -> dict[str, str]:
    """Map the flags of a command line to their values, written as `--flag value` or `--flag=value`."""
    words = [
        word for argument in line for word in (argument.split("=", 1) if argument.startswith("--") else [argument])
    ]
    found: dict[str, str] = {}
    for word in words:
        if word.startswith("--"):
            found[word] = ""
        else:
            found[list(found)[-1]] = word
    return found


@pytest.mark.parametrize("values", FLEETS)
def test_fleet_server_has_the_command_line_of_a_generator(render: Render, values: str, tmp_path: Path) -> None:
    config = run_config(render(values), tmp_path)
    own = arguments(config.generator, config.model.path, 30000)
    assert flags(server(render(values))["args"]) == flags(own) | {"--host": "0.0.0.0"}


def test_bounded_entropies_need_no_logit_processor(helm: Helm) -> None:
    lower = ("--set", "config.generator.sglang.entropy=lower")
    out = helm(
        "template",
        "run1",
        str(CHART),
        "-f",
        str(CHART / "ci" / "fleet-hpa.yaml"),
        *lower,
        "--show-only",
        "templates/fleet.yaml",
    )
    assert (
        "--dtype=float32" in out.stdout
        and "custom-logit-processor" not in out.stdout
        and "overlap-schedule" not in out.stdout
    )


@pytest.mark.parametrize("values", FLEETS)
def test_servers_and_router_use_the_image_of_the_run(render: Render, values: str) -> None:
    pods = pod_templates(render(values))
    images = {c["image"] for pod in pods.values() for c in pod["spec"]["containers"]}
    assert len(images) == 1


@pytest.mark.parametrize("values", FLEETS)
def test_cpu_fleet_server_has_the_variables_of_a_generator(render: Render, values: str, tmp_path: Path) -> None:
    config = run_config(render(values), tmp_path)
    given = {e["name"]: e["value"] for e in server(render(values))["env"]}
    assert (given.get("SGLANG_USE_CPU_ENGINE") == "1") == (config.generator.sglang.device == "cpu")
    assert given.get("PYTHONPATH", config.generator.sglang.stubs) == config.generator.sglang.stubs
    assert ("PYTHONPATH" in given) == (config.generator.sglang.device == "cpu")


def with_local_paths(config: Config, url: str, root: Path, model: Path) -> Config:
    """Return the configuration of the run with the paths of this machine."""
    tree = config.model_dump(mode="json")
    tree["run"]["root"], tree["model"]["path"], tree["generator"]["threads"] = str(root), str(model), 1
    tree["generator"]["sglang"] |= {"url": url, "stubs": str(STUBS), "start_timeout": 200.0}
    return Config.model_validate(tree)


@pytest.mark.slow  # the imports of SGLang and its router take most of the time
@pytest.mark.sglang
@needs_sglang
def test_sglang_and_its_router_accept_the_command_lines(render: Render, tmp_path: Path) -> None:
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
    added = environment(
        with_local_paths(run_config(render("fleet-hpa"), tmp_path), "", tmp_path, tmp_path).generator.sglang, 1
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=os.environ | added, timeout=200
    )
    assert done.stdout.splitlines() == [
        "cpu float32",
        "cuda bfloat16",
        "{'app.kubernetes.io/instance': 'run1', 'treeadv/role': 'fleet'}",
    ], done.stderr


@pytest.mark.slow
@pytest.mark.sglang
@needs_sglang
def test_generator_accepts_a_server_started_as_by_the_chart(render: Render, tmp_path: Path, tiny_model: Path) -> None:
    """The real server starts with the rendered command line and variables. The generator checks its flags, tokenizer
    and log-probs."""
    from treeadv.engines.sglang.engine import SGLangEngine

    documents, port = render("fleet-hpa"), free_port()
    config = with_local_paths(run_config(documents, tmp_path), f"http://127.0.0.1:{port}", tmp_path, tiny_model)
    container = server(documents)
    overrides = {"--model-path": str(tiny_model), "--port": str(port), "--host": "127.0.0.1"}
    line = [f"{flag}={value}" if value else flag for flag, value in (flags(container["args"]) | overrides).items()]
    variables = {e["name"]: e["value"] for e in container["env"]} | {"PYTHONPATH": str(STUBS), "HOME": str(tmp_path)}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, *container["command"][1:], *line],
            env=os.environ | variables,
            stdout=log,
            stderr=log,
            start_new_session=True,
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
