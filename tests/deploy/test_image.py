"""Tests that the Containerfile passes its checks, and that the CPU images build and run under the restrictions of the
chart."""

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
buildable = pytest.mark.skipif(bool(build.missing()), reason=f"not installed: {build.missing()}")


def test_hadolint_finds_nothing() -> None:
    out = subprocess.run(
        [Path(sys.executable).with_name("hadolint"), CONTAINERFILE], capture_output=True, text=True, timeout=60
    )
    assert (out.returncode, out.stdout) == (0, "")


def test_copied_paths_exist_and_are_not_ignored() -> None:
    copied = {
        word
        for line in CONTAINERFILE.read_text().splitlines()
        if line.startswith("COPY ") and "--from" not in line
        for word in line.split()[1:-1]
    }
    ignore = CONTAINERFILE.with_name("Containerfile.dockerignore").read_text()
    kept = {line[1:] for line in ignore.splitlines() if line[0] == "!"}
    assert all((ROOT / word).exists() for word in copied)
    assert all(any(Path(word).is_relative_to(folder) for word in copied) for folder in kept)
    assert all(any(Path(word).is_relative_to(folder) for folder in kept) for word in copied)


def stages() -> tuple[str, str]:
    """Return the instructions of the build stage and of the final stage without comments, one on each line."""
    text = re.sub(r"^#.*\n", "", CONTAINERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    build_stage, final = text.split("\nFROM ")[1:]
    return build_stage, final


def test_only_the_cuda_image_has_a_compiler() -> None:
    _, final = stages()
    pattern = r"install ([^&]*)&& if \[ \"\$VARIANT\" = cuda \]; then apt-get install ([^;]*); fi"
    always, only_cuda = re.search(pattern, final).groups()
    compiler = {"gcc", "libc6-dev", "python3-dev"}  # Triton compiles its launchers against libc and Python.h
    assert compiler <= set(only_cuda.split())
    assert not compiler & set(always.split())


def test_each_variant_installs_extras_and_its_sglang() -> None:
    build_stage, _ = stages()
    installs = dict(re.findall(r"([a-z-]+)\) (.*?);;", build_stage))
    assert set(installs) == {"cpu", "sglang-cpu", "cuda"}
    assert all('".[train,lora,hf]"' in commands for commands in installs.values())
    assert "sglang" not in installs["cpu"]
    # On a GPU, SGLang's own pins apply.
    assert "--no-deps" in installs["sglang-cpu"] and "--no-deps" not in installs["cuda"]
    pins = (ROOT / "deploy" / "sglang_cpu" / "requirements.txt").read_text()
    assert [line.split("==")[0] for line in pins.splitlines() if line.startswith("sglang")] == [
        "sglang",
        "sglang-router",
    ]


@pytest.fixture(scope="module")
def image() -> None:
    build.build()


@pytest.mark.slow
@buildable
def test_image_runs_unprivileged_on_a_read_only_root(image: None) -> None:
    read_only = "touch /etc/x 2>/dev/null || echo read-only"
    steps = ("id -u", "grep CapEff /proc/self/status", read_only, "python -m actors.driver.drain -h >/dev/null")
    out = build.run(["-ec", "; ".join(steps)], ["--entrypoint", "bash"])
    assert out.returncode == 0, out.stderr
    assert out.stdout.split() == ["10001", "CapEff:", "0000000000000000", "read-only"]


@pytest.mark.slow
@buildable
def test_login_shell_finds_the_programs_of_kuberay(image: None) -> None:
    out = build.run(["-lc", "which ray treeadv python wget && ray --version"], ["--entrypoint", "bash"])
    assert out.returncode == 0, out.stderr
    assert "ray, version 2.60" in out.stdout


@pytest.mark.slow
@buildable
def test_sglang_image_accepts_the_fleet_arguments(render: Render) -> None:
    build.build("sglang-cpu")
    pods = pod_templates(render("fleet-hpa"))
    server, router = (pods[f"run1-treeadv-{name}"]["spec"]["containers"][0] for name in ("fleet", "router"))
    variables = [word for e in server["env"] for word in ("-e", f"{e['name']}={e['value']}")]
    script = "import argparse, treeadv.engines.sglang.entropy; from sglang.srt.server_args import ServerArgs; "
    script += "p = argparse.ArgumentParser(); ServerArgs.add_cli_args(p); print(p.parse_args().device)"
    out = build.run(["-c", script, *server["args"]], ["--entrypoint", "python3", *variables], variant="sglang-cpu")
    assert (out.returncode, out.stdout.split()[-1:]) == (0, ["cpu"]), out.stderr
    out = build.run([*router["command"][1:], "--help"], ["--entrypoint", router["command"][0]], variant="sglang-cpu")
    assert out.returncode == 0 and "--service-discovery" in out.stdout, out.stderr


@pytest.mark.slow
@buildable
def test_image_trains_a_tiny_model(image: None, tiny_model: Path, tmp_path: Path) -> None:
    config = recipe(Path("/model"), Path("/data"))
    config["run"] |= {"steps": 2}
    runs = tmp_path / "runs"
    runs.mkdir()
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    for path in (tmp_path, tiny_model, *tiny_model.iterdir()):
        path.chmod(path.stat().st_mode | 0o055)
    runs.chmod(0o777)
    mounts = [
        "-v",
        f"{tiny_model}:/model:ro",
        "-v",
        f"{tmp_path}/config.yaml:/etc/treeadv/config.yaml:ro",
        "-v",
        f"{runs}:/data",
    ]
    out = build.run(["train", "--config", "/etc/treeadv/config.yaml"], mounts, timeout=400)
    assert out.returncode == 0, out.stdout[-3000:] + out.stderr[-3000:]
    assert json.loads((runs / "watched" / "summary.json").read_text())["steps"] == 2
