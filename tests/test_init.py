"""Tests the choices of `treeadv init`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from treeadv.cli.main import main


@pytest.mark.parametrize(
    ("golds", "verifier"),
    [(["7", "1,250", "-2.5"], "literal"), (["7", "x^2"], "math"), (["A", "C"], "choice")],
)
def test_init_chooses_the_strictest_verifier_of_the_golds(
    golds: list[str], verifier: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [json.dumps({"problem": f"problem {n}", "answer": gold}) for n, gold in enumerate(golds)]
    Path("p.jsonl").write_text("\n".join(lines) + "\n")
    assert main(["init", str(tiny_model), "p.jsonl"]) == 0
    task = yaml.safe_load(Path("recipe.yaml").read_text())["task"]
    assert task["verifier"] == verifier and ("boxed" in task["prompt"]) == (verifier != "choice")
