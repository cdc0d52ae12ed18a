"""Build and run an image for the CPU where no registry is in reach: on a base that debootstrap makes, with buildah and podman (as root).

    python -m deploy.images.build [sglang-cpu]       # tags localhost/treeadv:cpu, or :sglang-cpu, in build/image

Elsewhere `docker build -f deploy/images/Containerfile .` does the same on a base from a registry. pip's environment variables of this
machine (PIP_CERT, PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS) hold in the build too.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STORE = ROOT / "build" / "image"
BASE = "localhost/debian:bookworm-minbase"
IMAGE = "localhost/treeadv"  # :VARIANT of the Containerfile
NEEDED = ("debootstrap", "buildah", "podman", "runc")


def missing() -> str:
    """What keeps this machine from building, for a skip; empty when nothing does."""
    absent = [program for program in NEEDED if shutil.which(program) is None]
    return ", ".join(absent) or ("" if os.geteuid() == 0 else "root")


def storage() -> list[str]:
    return ["--root", str(STORE / "root"), "--runroot", str(STORE / "run"), "--storage-driver", "overlay"]


def base() -> None:
    """A minimal Debian as an image, made once."""
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
    """Build a variant of the image; layers whose inputs did not change are kept."""
    base()
    line = ["buildah", *storage(), "bud", "--isolation", "chroot", "--network", "host", "--layers", "-t", f"{IMAGE}:{variant}"]
    line += ["-f", str(ROOT / "deploy" / "images" / "Containerfile"), "--build-arg", f"BASE={BASE}", "--build-arg", f"VARIANT={variant}"]
    line += ["--ignorefile", str(ROOT / "deploy" / "images" / "Containerfile.dockerignore")]
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
    """Run the image as the chart does: read-only root, no capabilities, no new privileges; /tmp and the home can be written."""
    line = ["podman", *storage(), "--cgroup-manager", "cgroupfs", "--runtime", "runc", "run", "--rm", "--pull", "never"]
    line += ["--network", "host", "--ulimit", "nofile=4096:4096", "--ulimit", "nproc=8192:8192", "--read-only", "--cap-drop", "ALL"]
    line += ["--security-opt", "no-new-privileges", "--tmpfs", "/tmp"]
    with tempfile.TemporaryDirectory() as home:  # a tmpfs would belong to root
        os.chmod(home, 0o777)
        line += ["-v", f"{home}:/home/treeadv", *(options or []), f"{IMAGE}:{variant}", *arguments]
        return subprocess.run(line, capture_output=True, text=True, timeout=timeout)


if __name__ == "__main__":
    build(*sys.argv[1:])
