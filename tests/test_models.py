"""Tests which names of models are accepted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from treeadv.config import ModelConfig
from treeadv.data.model_folder import anywhere, check_path, resolve
from treeadv.errors import BadInput


def test_model_folder_is_found_from_another_working_folder(tiny_model: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tiny_model.parent)
    named = anywhere(ModelConfig(path=tiny_model.name, cache="models"))
    monkeypatch.chdir(tmp_path)
    assert resolve(named.path, named.cache) == tiny_model.resolve()


HUB = """
import sys
from treeadv.data.model_folder import resolve
from treeadv.errors import BadInput
try:
    print(resolve(sys.argv[1], "models"))
except BadInput as e:
    print(e)
"""


def test_hub_model_comes_from_the_cache_or_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    kept = tmp_path / "models--some--model"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("c0ffee")
    (kept / "snapshots").mkdir()
    (kept / "snapshots" / "c0ffee").symlink_to(tiny_model, target_is_directory=True)
    environment = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path)}

    def result(name: str) -> str:
        command = [sys.executable, "-c", HUB, name]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()

    assert result("some/model") == str(kept / "snapshots" / "c0ffee")
    assert result("some/other").startswith(
        "model.path=some/other: no such folder, and the hub has no readable model of this name ("
    )


@pytest.mark.parametrize("name", ["nowhere", "/no/where", "../no", "a/b/c"])
def test_invalid_hub_name_is_reported_as_a_missing_folder(name: str) -> None:
    with pytest.raises(
        BadInput, match=r"no such folder; give a Hugging Face model folder, ORGANISATION/MODEL or smollm2"
    ):
        check_path(name, "models")
