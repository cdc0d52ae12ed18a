"""Runs the code blocks of docs/extending.md, each section in a separate process and folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "extending.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S))
BLOCKS = {name: re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S) for name, text in SECTIONS.items()}


def test_page_has_a_section_for_each_kind_of_extension() -> None:
    kinds = "Fork rule, Verifier, Engine, Advantage preset, Storage, Selection, Normaliser, Experiment tracker"
    assert list(SECTIONS) == kinds.split(", ")


@pytest.mark.parametrize("section", [name for name, blocks in BLOCKS.items() if blocks])
def test_code_blocks_of_a_section_run(section: str, tmp_path: Path) -> None:
    script = ""
    for block in BLOCKS[section]:
        if module := re.match(r"# (\w+\.py)\n", block):
            (tmp_path / module[1]).write_text(block)
        else:
            script += block
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
