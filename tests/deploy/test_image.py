"""The image: its recipe is clean, and the CPU image is built and trains a tiny model under the chart's restrictions."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from deploy.images import build
from tests.deploy.manifests import ROOT, Render, pod_templates
from tests.deploy.test_live_run import recipe

CONTAINERFILE = ROOT / "deploy" / "images" / "Containerfile"
buildable = pytest.mark.skipif(bool(build.missing()), reason=f"not here: {build.missing()}")


def test_hadolint_finds_nothing() -> None:
    out = subprocess.run([Path(sys.executable).with_name("hadolint"), CONTAINERFILE], capture_output=True, text=True, timeout=60)
    assert (out.returncode, out.stdout) == (0, "")


def test_what_the_recipe_copies_exists_and_passes_its_ignore_file() -> None:
    copied = {
        word
        for line in CONTAINERFILE.read_text().splitlines()
        if line.startswith("COPY ") and "--from" not in line
        for word in line.split()[1:-1]
    }
    kept = {line[1:] for line in (ROOT / "deploy" / "images" / "Containerfile.dockerignore").read_text().splitlines() if line[0] == "!"}
    assert all((ROOT / word).exists() for word in copied)
    assert all(any(Path(word).is_relative_to(folder) for word in copied) for folder in kept)
    assert all(any(Path(word).is_relative_to(folder) for folder in kept) for word in copied)


def stages() -> tuple[str, str]:
    """The instructions of the building and of the final stage, without comments, each on one line."""
    text = re.sub(r"^#.*\n", "", CONTAINERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    build_stage, final = text.split("\nFROM ")[1:]
    return build_stage, final


def test_the_cuda_image_can_compile_where_it_runs_and_the_others_carry_no_compiler() -> None:
    _, final = stages()
    always, only_cuda = re.search(r"install ([^&]*)&& if \[ \"\$VARIANT\" = cuda \]; then apt-get install ([^;]*); fi", final).groups()
    assert {"gcc", "libc6-dev", "python3-dev"} <= set(only_cuda.split())  # Triton's launchers: a compiler, libc's headers, Python.h
    assert not {"gcc", "libc6-dev", "python3-dev"} & set(always.split())


def test_each_variant_installs_its_sglang_in_the_version_that_the_tests_run_and_the_optional_packages() -> None:
    build_stage, _ = stages()
    ways = dict(re.findall(r"([a-z-]+)\) (.*?);;", build_stage))
    assert set(ways) == {"cpu", "sglang-cpu", "cuda"}
    assert all('".[lora,hf]"' in way for way in ways.values())
    assert "sglang" not in ways["cpu"]
    assert "--no-deps" in ways["sglang-cpu"] and "--no-deps" not in ways["cuda"]  # on a GPU SGLang's own pins hold
    pins = (ROOT / "deploy" / "sglang_cpu" / "requirements.txt").read_text()
    assert [line.split("==")[0] for line in pins.splitlines() if line.startswith("sglang")] == ["sglang", "sglang-router"]


@pytest.fixture(scope="module")
def image() -> None:
    build.build()


@pytest.mark.slow
@buildable
def test_it_runs_without_root_without_capabilities_and_on_a_read_only_root(image: None) -> None:
    read_only = "touch /etc/x 2>/dev/null || echo read-only"
    steps = ("id -u", "grep CapEff /proc/self/status", read_only, "python -m actors.driver.drain -h >/dev/null")
    out = build.run(["-ec", "; ".join(steps)], ["--entrypoint", "bash"])
    assert out.returncode == 0, out.stderr
    assert out.stdout.split() == ["10001", "CapEff:", "0000000000000000", "read-only"]


@pytest.mark.slow
@buildable
def test_a_login_shell_finds_what_kuberay_calls(image: None) -> None:
    out = build.run(["-lc", "which ray treeadv python wget && ray --version"], ["--entrypoint", "bash"])
    assert out.returncode == 0, out.stderr
    assert "ray, version 2.60" in out.stdout


@pytest.mark.slow
@buildable
def test_the_image_with_sglang_takes_the_command_lines_of_the_charts_fleet(render: Render) -> None:
    build.build("sglang-cpu")
    pods = pod_templates(render("fleet-hpa"))
    server, router = (pods[f"run1-treeadv-{name}"]["spec"]["containers"][0] for name in ("fleet", "router"))
    variables = [part for e in server["env"] for part in ("-e", f"{e['name']}={e['value']}")]
    script = "import argparse, treeadv.engines.sglang.entropy; from sglang.srt.server_args import ServerArgs; "
    script += "p = argparse.ArgumentParser(); ServerArgs.add_cli_args(p); print(p.parse_args().device)"
    out = build.run(["-c", script, *server["args"]], ["--entrypoint", "python3", *variables], variant="sglang-cpu")
    assert (out.returncode, out.stdout.split()[-1:]) == (0, ["cpu"]), out.stderr
    out = build.run([*router["command"][1:], "--help"], ["--entrypoint", router["command"][0]], variant="sglang-cpu")
    assert out.returncode == 0 and "--service-discovery" in out.stdout, out.stderr


@pytest.mark.slow
@buildable
def test_it_trains_a_tiny_model(image: None, tiny_model: Path, tmp_path: Path) -> None:
    config = recipe(Path("/model"), Path("/data"))
    config["run"] |= {"steps": 2}
    runs = tmp_path / "runs"
    runs.mkdir()
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    for path in (tmp_path, tiny_model, *tiny_model.iterdir()):
        path.chmod(path.stat().st_mode | 0o055)
    runs.chmod(0o777)
    mounts = ["-v", f"{tiny_model}:/model:ro", "-v", f"{tmp_path}/config.yaml:/etc/treeadv/config.yaml:ro", "-v", f"{runs}:/data"]
    out = build.run(["train", "--config", "/etc/treeadv/config.yaml"], mounts, timeout=400)
    assert out.returncode == 0, out.stdout[-3000:] + out.stderr[-3000:]
    assert json.loads((runs / "watched" / "summary.json").read_text())["steps"] == 2
