"""Tests that a bundle contains what the server answers, and needs no other file."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from actors.cli import main
from treeadv.view.catalogue import Catalogue
from treeadv.view.server import Api


def data(path: Path) -> dict[str, dict]:
    """Return the values of a file of a bundle by key."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        assert line.startswith("treeadvData(") and line.endswith(")")
        key, value = json.loads(f"[{line[len('treeadvData(') : -1]}]")
        found[key] = value
    return found


def test_bundle_has_every_forest_as_the_server_gives_it(run: Path, tmp_path: Path, catalogue: Catalogue) -> None:
    assert main(["view", str(run), "--bundle", str(tmp_path / "out")]) == 0
    index = data(tmp_path / "out" / "data" / "run.js")[""]
    assert index["run"]["was"] == "finished" and len(index["rows"]) == 6
    api = Api(catalogue)
    for row in index["rows"]:
        forest = data(tmp_path / "out" / row["file"])[row["key"]]
        assert forest == json.loads(json.dumps(api.paths["/api/forest"]({"key": row["key"]})))


def test_page_of_a_bundle_names_no_other_file(run: Path, tmp_path: Path) -> None:
    assert main(["view", str(run), "--bundle", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "index.html").read_text()
    addresses = re.findall(r'(?:src|href)="([^"]*)"|"(?:preact|htm|view/[^"]*)":"([^"]*)"', page)
    assert len(addresses) > 10 and all("".join(pair).startswith("data:") for pair in addresses)


def test_bundle_of_some_steps_has_only_their_forests(run: Path, tmp_path: Path) -> None:
    assert main(["view", str(run), "--bundle", str(tmp_path / "out"), "--steps", "2-3"]) == 0
    index = data(tmp_path / "out" / "data" / "run.js")[""]
    assert [row["step"] for row in index["rows"]] == [2, 3]
    assert set(data(tmp_path / "out" / "data" / "part-0.js")) == {row["key"] for row in index["rows"]}
    assert len(index["prompts"]) == 2


def test_large_forests_have_files_of_their_own(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("treeadv.view.bundle.FULL_FILE", 3000)
    assert main(["view", str(run), "--bundle", str(tmp_path / "out")]) == 0
    rows = data(tmp_path / "out" / "data" / "run.js")[""]["rows"]
    assert len({row["file"] for row in rows}) > 2
    for row in rows:
        assert row["key"] in data(tmp_path / "out" / row["file"])


def test_folder_with_files_is_not_overwritten(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "kept").write_text("kept")
    assert main(["view", str(run), "--bundle", str(tmp_path)]) == 2
    assert "is not an empty folder" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]


@pytest.mark.parametrize(("steps", "message"), [("3-2", "3 comes after 2"), ("70-90", "has no forest of these steps")])
def test_steps_without_a_forest_are_refused(
    run: Path, tmp_path: Path, steps: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        sys.exit(main(["view", str(run), "--bundle", str(tmp_path / "out"), "--steps", steps]))
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()
