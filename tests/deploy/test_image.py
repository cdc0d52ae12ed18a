"""The image: its recipe is clean, and the CPU image is built and trains a tiny model under the chart's restrictions."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from deploy.images import build
from tests.deploy.manifests import ROOT
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
    assert {word.split("/")[0] for word in copied} == kept


@pytest.fixture(scope="module")
def image() -> None:
    build.build()


@pytest.mark.slow
@buildable
def test_it_runs_without_root_without_capabilities_and_on_a_read_only_root(image: None) -> None:
    steps = ("id -u", "grep CapEff /proc/self/status", "touch /etc/x 2>/dev/null || echo read-only", "python -m actors.drain -h >/dev/null")
    out = build.run(["-ec", "; ".join(steps)], ["--entrypoint", "bash"])
    assert out.returncode == 0, out.stderr
    assert out.stdout.split() == ["10001", "CapEff:", "0000000000000000", "read-only"]


@pytest.mark.slow
@buildable
def test_a_login_shell_finds_what_kuberay_calls(image: None) -> None:
    out = build.run(["-lc", "which ray treeadv wget && ray --version"], ["--entrypoint", "bash"])
    assert out.returncode == 0, out.stderr
    assert "ray, version 2.60" in out.stdout


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
