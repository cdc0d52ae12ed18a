"""Builds and runs a CPU image without a registry, as root. debootstrap makes the base image. buildah builds the image,
and podman runs it.

    python -m deploy.images.build [sglang-cpu]       # tags localhost/treeadv:cpu, or :sglang-cpu, in build/image

With a registry, `docker build -f deploy/images/Containerfile .` does the same. The build uses the variables PIP_CERT,
PIP_INDEX_URL, PIP_EXTRA_INDEX_URL and PIP_FIND_LINKS of the environment.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from treeadv.command_line import run_command, tool_parser

ROOT = Path(__file__).resolve().parents[2]
STORE = ROOT / "build" / "image"
BASE = "localhost/debian:bookworm-minbase"
IMAGE = "localhost/treeadv"  # :VARIANT of the Containerfile
NEEDED = ("debootstrap", "buildah", "podman", "runc")


def missing() -> str:
    """Return what is missing for a build, as a reason to skip a test. The text is empty if nothing is missing."""
    absent = [program for program in NEEDED if shutil.which(program) is None]
    return ", ".join(absent) or ("" if os.geteuid() == 0 else "root")


def storage() -> list[str]:
    return ["--root", str(STORE / "root"), "--runroot", str(STORE / "run"), "--storage-driver", "overlay"]


def base() -> None:
    """Make an image with a minimal Debian, unless the image exists."""
    if subprocess.run(["podman", *storage(), "image", "exists", BASE]).returncode == 0:
        return
    STORE.mkdir(parents=True, exist_ok=True)
    tree, archive = STORE / "rootfs", STORE / "base.tar"
    shutil.rmtree(tree, ignore_errors=True)
    subprocess.run(["debootstrap", "--variant=minbase", "bookworm", str(tree)], check=True)
    subprocess.run(["tar", "-C", str(tree), "-cf", str(archive), "."], check=True)
    subprocess.run(["podman", *storage(), "import", str(archive), BASE], check=True)
    shutil.rmtree(tree)
    archive.unlink()


def build(variant: str = "cpu") -> None:
    """Build a variant of the image. Unchanged layers come from the cache."""
    base()
    folder = ROOT / "deploy" / "images"
    line = ["buildah", *storage(), "bud", "--isolation", "chroot", "--network", "host", "--layers"]
    line += ["-t", f"{IMAGE}:{variant}", "-f", str(folder / "Containerfile")]
    line += ["--build-arg", f"BASE={BASE}", "--build-arg", f"VARIANT={variant}"]
    line += ["--ignorefile", str(folder / "Containerfile.dockerignore")]
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        if value := os.environ.get(name):
            line += ["--build-arg", f"{name}={value}"]
    for name, inside in (("PIP_CERT", "/build-ca.crt"), ("PIP_FIND_LINKS", "/build-wheels")):
        if value := os.environ.get(name):
            line += ["-v", f"{value}:{inside}:ro", "--build-arg", f"{name}={inside}"]
    subprocess.run([*line, str(ROOT)], check=True)


def run(
    arguments: list[str], options: list[str] | None = None, timeout: float = 120.0, variant: str = "cpu"
) -> subprocess.CompletedProcess[str]:
    """Run the image with the restrictions of the chart: a read-only root except for /tmp and home, and no
    capabilities."""
    line = ["podman", *storage(), "--cgroup-manager", "cgroupfs", "--runtime", "runc", "run", "--rm", "--pull", "never"]
    line += ["--network", "host", "--ulimit", "nofile=4096:4096", "--ulimit", "nproc=8192:8192"]
    line += ["--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--tmpfs", "/tmp"]
    with tempfile.TemporaryDirectory() as home:  # a tmpfs would belong to root
        os.chmod(home, 0o777)
        line += ["-v", f"{home}:/home/treeadv", *(options or []), f"{IMAGE}:{variant}", *arguments]
        return subprocess.run(line, capture_output=True, text=True, timeout=timeout)


def main(argv: Sequence[str] | None = None) -> None:
    p = tool_parser("python -m deploy.images.build", __doc__)
    p.add_argument("variant", nargs="?", choices=("cpu", "sglang-cpu", "cuda"), default="cpu")
    build(p.parse_args(argv).variant)


if __name__ == "__main__":
    sys.exit(run_command(main))
