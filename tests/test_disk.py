"""Tests of durable writes and of the modes of `rename` and `replacing`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import treeadv.disk
from treeadv.data.model_folder import creating_folder
from treeadv.disk import Existing, rename, replacing
from treeadv.errors import BadInput


def folder(path: Path, text: str) -> Path:
    """Create a folder whose file `name` has `text`."""
    path.mkdir()
    (path / "name").write_text(text)
    return path


def tree(path: Path) -> dict[str, str]:
    """Return the text of each file below a folder, by relative path."""
    return {str(f.relative_to(path)): f.read_text() for f in sorted(path.rglob("*")) if f.is_file()}


@pytest.mark.parametrize("existing", ["replace", "refuse", "keep"])
@pytest.mark.parametrize("empty", [False, True])
def test_folder_is_renamed_to_a_free_name(tmp_path: Path, existing: Existing, empty: bool) -> None:
    if empty:
        (tmp_path / "target").mkdir()
    rename(folder(tmp_path / "scratch", "new"), tmp_path / "target", existing=existing)
    assert tree(tmp_path) == {"target/name": "new"}


@pytest.mark.parametrize("old", ["folder", "file", "link"])
def test_replace_deletes_the_old_target(tmp_path: Path, old: str) -> None:
    make_old(tmp_path, old)
    rename(folder(tmp_path / "scratch", "new"), tmp_path / "target")
    assert not (tmp_path / "target").is_symlink()
    kept = {"linked/name": "old"} if old == "link" else {}
    assert tree(tmp_path) == {**kept, "target/name": "new"}


@pytest.mark.parametrize("old", ["folder", "file", "link"])
def test_refuse_raises_and_changes_nothing(tmp_path: Path, old: str) -> None:
    make_old(tmp_path, old)
    folder(tmp_path / "scratch", "new")
    before = tree(tmp_path)
    with pytest.raises(OSError):
        rename(tmp_path / "scratch", tmp_path / "target", existing="refuse")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("old", ["folder", "file", "link"])
def test_keep_leaves_the_old_target(tmp_path: Path, old: str) -> None:
    make_old(tmp_path, old)
    before = tree(tmp_path)
    with replacing(tmp_path / "target", existing="keep") as scratch:
        folder(scratch, "new")
    assert tree(tmp_path) == before


def test_keep_reports_other_errors_of_the_rename(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        rename(folder(tmp_path / "scratch", "new"), tmp_path / "absent" / "target", existing="keep", durable=False)


@pytest.mark.parametrize("existing", ["refuse", "keep"])
def test_refuse_and_keep_take_no_file(tmp_path: Path, existing: Existing) -> None:
    (tmp_path / "scratch").write_text("new")
    (tmp_path / "target").write_text("old")
    with pytest.raises(ValueError, match="only a folder"):
        rename(tmp_path / "scratch", tmp_path / "target", existing=existing)
    assert tree(tmp_path) == {"scratch": "new", "target": "old"}


def test_error_in_the_body_leaves_the_old_file_only(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("old")
    with pytest.raises(KeyError), replacing(tmp_path / "target") as scratch:
        scratch.write_text("new")
        raise KeyError
    assert tree(tmp_path) == {"target": "old"}


def test_two_writers_of_one_file_have_two_scratch_files(tmp_path: Path) -> None:
    with replacing(tmp_path / "target") as first, replacing(tmp_path / "target") as second:
        first.write_text("first")
        second.write_text("second")
    assert tree(tmp_path) == {"target": "first"}


@pytest.mark.parametrize("durable", [False, True])
def test_only_a_durable_rename_flushes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool) -> None:
    flushed: list[str] = []
    monkeypatch.setattr(treeadv.disk, "fsync", lambda path: flushed.append(os.path.relpath(path, tmp_path)))
    rename(folder(tmp_path / "scratch", "new"), tmp_path / "target", durable=durable)
    assert flushed == (["scratch/name", "scratch", "."] if durable else [])


def test_model_folder_with_other_files_is_bad_input(tmp_path: Path) -> None:
    folder(tmp_path / "model", "old")
    with pytest.raises(BadInput, match="delete the folder"), creating_folder(tmp_path / "model") as scratch:
        (scratch / "config.json").write_text("{}")
    assert tree(tmp_path) == {"model/name": "old"}


def test_model_that_another_process_made_first_stays(tmp_path: Path) -> None:
    with creating_folder(tmp_path / "model") as scratch:
        (scratch / "config.json").write_text("second")
        with creating_folder(tmp_path / "model") as other:
            (other / "config.json").write_text("first")
    assert tree(tmp_path) == {"model/config.json": "first"}


def make_old(root: Path, old: str) -> None:
    """Create `target` as a folder, a file, or a link to the folder `linked`."""
    if old == "folder":
        folder(root / "target", "old")
    elif old == "file":
        (root / "target").write_text("old")
    else:
        (root / "target").symlink_to(folder(root / "linked", "old"))
