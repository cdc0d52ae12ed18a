"""Tests the installed package: from another folder, and without the packages of the pipeline."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TRAIN = ("ray", "reasoning_gym", "aiohttp", "psutil", "accelerate", "gguf", "sentencepiece")
WITHOUT = f"import sys\nfor name in {TRAIN}: sys.modules[name] = None\n"  # simulates an installation without `train`


def run(code: str, folder: Path, path: Path = ROOT) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(path)}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True, timeout=120
    )


def test_library_works_without_the_packages_of_the_pipeline(tmp_path: Path) -> None:
    code = WITHOUT + (
        "import treeadv\n"
        "for name in treeadv.__all__: getattr(treeadv, name)\n"
        "print(treeadv.verify('so \\\\boxed{7}', '7').verdict.name)\n"
    )
    done = run(code, tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, "VERIFIED"), done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--config", "laptop"], "treeadv train needs the package ray: pip install 'treeadv[train]'"),
        (
            ["train", "--local", "--config", "laptop"],
            "task.source=reasoning-gym needs the package reasoning_gym: pip install 'treeadv[train]'",
        ),
    ],
)
def test_missing_package_is_named_with_its_remedy(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = run(WITHOUT + f"from actors.cli import main\nsys.exit(main({arguments}))", tmp_path)
    assert done.returncode == 2 and message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_built_package_runs_from_another_folder(tmp_path: Path, kind: str) -> None:
    source = tmp_path / "source"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(source)], check=True)
    subprocess.run(
        [sys.executable, "-m", "build", "-q", "--no-isolation", f"--{kind}", "--outdir", str(tmp_path / "dist"), "."],
        cwd=source,
        check=True,
    )
    (built,) = (tmp_path / "dist").iterdir()
    place, elsewhere = tmp_path / "place", tmp_path / "elsewhere"
    elsewhere.mkdir()
    options = ["-q", "--no-deps", "--no-build-isolation", "--target", str(place)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(built)], check=True)
    assert {p.name for p in place.iterdir()} - {"bin"} == {"treeadv", "actors", "treeadv-0.1.0.dist-info"}
    assert (place / "treeadv" / "py.typed").is_file()
    static = place / "treeadv" / "view" / "static"
    assert {"style.css", "main.js", "vendor/preact.js", "vendor/LICENSE-preact", "vendor/LICENSE-htm"} <= {
        str(p.relative_to(static)) for p in static.rglob("*")
    }
    code = (
        "import treeadv\n"
        f"assert treeadv.__file__.startswith({str(place)!r})\n"
        "from pathlib import Path\n"
        "print(treeadv.load_config(Path('laptop')).learner.preset)\n"
    )
    done = run(code, elsewhere, place)
    assert (done.returncode, done.stdout) == (0, "treeadv\n"), done.stderr
