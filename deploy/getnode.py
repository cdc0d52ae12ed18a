"""Install the pinned Node packages of deploy/checks (CRD models, README generator) into build/checks.

    python deploy/getnode.py            # prints the folder; needs node 20 and npm
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).resolve().parent / "checks"
FOLDER = Path(__file__).resolve().parents[1] / "build" / "checks"


def prepare(folder: Path = FOLDER) -> Path:
    """Bring `folder` to what the lock file says; npm verifies every package's hash."""
    lock = (SOURCE / "package-lock.json").read_bytes()
    done = folder / ".installed"
    folder.mkdir(parents=True, exist_ok=True)
    for file in SOURCE.iterdir():
        shutil.copy(file, folder)
    if not done.exists() or done.read_bytes() != lock:
        # The KEDA models ask for node 22, which the parts used here do not need: --force lets node 20 have them.
        npm = ["npm", "ci", "--force", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        subprocess.run(npm, cwd=folder, check=True)
        done.write_bytes(lock)
    return folder


if __name__ == "__main__":
    print(prepare())
