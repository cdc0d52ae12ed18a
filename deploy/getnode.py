"""Installs the pinned Node packages of deploy/checks (CRD models, README generator) into build/checks.

python -m deploy.getnode            # prints the folder; needs node 20 and npm
python -m deploy.getnode --readme   # writes the table of values into helm/treeadv/README.md; a test compares
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

from treeadv.command_line import run_command, tool_parser

SOURCE = Path(__file__).resolve().parent / "checks"
FOLDER = Path(__file__).resolve().parents[1] / "build" / "checks"


def prepare(folder: Path = FOLDER) -> Path:
    """Install the packages of the lock file into `folder` and return the folder. npm verifies the hash of each
    package. Other processes that call this at the same time wait."""
    lock = (SOURCE / "package-lock.json").read_bytes()
    done = folder / ".installed"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        for file in SOURCE.iterdir():
            shutil.copy(file, folder)
        if not done.exists() or done.read_bytes() != lock:
            # The KEDA models declare node 22 but work with node 20; --force skips npm's check of the version.
            npm = ["npm", "ci", "--force", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
            subprocess.run(npm, cwd=folder, check=True)
            done.write_bytes(lock)
    return folder


def write_readme(folder: Path, values: Path, readme: Path) -> None:
    """Write the comments of `values` as a table below the heading Parameters of `readme`."""
    program = folder / "node_modules" / ".bin" / "readme-generator"
    subprocess.run([program, "-v", values, "-r", readme], check=True, stdout=subprocess.DEVNULL, timeout=60)


def main(argv: Sequence[str] | None = None) -> None:
    p = tool_parser("python -m deploy.getnode", __doc__)
    p.add_argument("--readme", action="store_true", help="write the table of values into helm/treeadv/README.md")
    readme, prepared = p.parse_args(argv).readme, prepare()
    if readme:
        chart = SOURCE.parents[1] / "helm" / "treeadv"
        write_readme(prepared, chart / "values.yaml", chart / "README.md")
    print(prepared)


if __name__ == "__main__":
    sys.exit(run_command(main))
