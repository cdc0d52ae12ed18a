"""Tests damaged files of a study: each gives one line with the file and a remedy, before a model is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.study.results import TREE, done, failed
from treeadv.cli.main import main
from treeadv.errors import BadInput
from treeadv.study.results import LOOKS, MACHINE, RESULT, read_looks, read_result, read_sessions
from treeadv.study.running import run_study
from treeadv.study.spec import Cell, load_study

CELL = Cell(row="grpo", seed=1)
LOOK = {"tokens_generated": 3.0, "accuracy": 0.5, "tokens_mean": 9.0}
SESSION = {"command": "treeadv study run", "date": "d", "cpu": "c", "cores": 2, "python": "3.11"}
NO_JSON = ["", "{", "\0", "[" * 100_000, '{"row": ' + "9" * 5000 + "}", '{"a": 1, "a": 2}']


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Return the folder of a study with one finished cell."""
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(TREE | {"warmup": {"steps": 1}, "base": {}}))
    folder = tmp_path / "cells" / CELL.folder
    folder.mkdir(parents=True)
    (folder / RESULT).write_text(json.dumps(done("grpo", 1, 0.5)))
    (folder / LOOKS).write_text(json.dumps({"0": LOOK}))
    (tmp_path / MACHINE).write_text(json.dumps([SESSION]))
    return tmp_path


def refused(home: Path, *words: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line of a refused command, which must come before the study runs or trains anything."""
    assert main(["study", *words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "set_int_max" not in lines[0] and len(lines[0]) < 600
    return lines[0]


def run_words(home: Path) -> tuple[str, ...]:
    return ("run", str(home / "study.yaml"), "--dir", str(home), "--models", str(home / "models"), "--jobs", "1")


def without(key: str, **changes: object) -> dict[str, Any]:
    return {k: v for k, v in (done("grpo", 1, 0.5) | changes).items() if k != key}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        *((text, "is not JSON") for text in NO_JSON[:5]),
        (NO_JSON[5], "occurs twice"),
        ("[1]", "a JSON object is needed, found list"),
        (json.dumps(done("treeadv", 1, 0.5)), "it is of row 'treeadv', seed 1"),
        (json.dumps(done("grpo", 2, 0.5)), "it is of row 'grpo', seed 2"),
        (json.dumps(without("status")), "it has no status"),
        (json.dumps(without("", status="half")), "its status is 'half', neither done nor failed"),
        (json.dumps(without("looks")), "it has no looks"),
        (json.dumps(without("", looks=[])), "it has no looks"),
        (json.dumps(without("", looks=[{"accuracy": 0.5}])), "it has no tokens_generated"),
        (json.dumps(without("", looks=[LOOK | {"accuracy": "x"}])), "accuracy is 'x', not a number"),
        (json.dumps(without("", seconds=float("nan"))), "seconds is nan, not a number"),
        (json.dumps(without("", series={"tokens_generated": []})), "its series tokens_generated is empty"),
        (json.dumps(without("", test=7)), "is no result of a cell"),
        (json.dumps(failed("grpo", 1) | {"reason": 7}), "its reason is no text"),
    ],
)
@pytest.mark.parametrize("command", ["run", "report"])
def test_damaged_result_is_named(home: Path, content: str, said: str, command: str, capsys) -> None:
    path = home / "cells" / CELL.folder / RESULT
    path.write_text(content)
    words = run_words(home) if command == "run" else ("report", str(home))
    line = refused(home, *words, capsys=capsys)
    assert said in line and str(path) in line and ("restore" in line or "remove one" in line)
    assert not (home / "models").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        *((text, "is not JSON") for text in NO_JSON[:5]),
        ('{"x": {}}', "'x' is no step"),
        ('{"0": 7}', "step 0: is no look of a study (a JSON object is needed, found int)"),
        ('{"0": {}}', "it has no tokens_generated"),
    ],
)
def test_damaged_looks_are_named(home: Path, content: str, said: str, capsys) -> None:
    folder = home / "cells" / CELL.folder
    (folder / RESULT).unlink()
    (folder / LOOKS).write_text(content)
    assert said in refused(home, *run_words(home), capsys=capsys)
    assert not (home / "models").exists()


def test_damaged_look_that_cells_share_is_named(home: Path, capsys) -> None:
    (home / "cells" / "start-0.json").write_text('{"accuracy": 0.5')
    assert "start-0.json: is not JSON" in refused(home, *run_words(home), capsys=capsys)


@pytest.mark.parametrize("content", ["7", '{"command": 1}', "[1]", json.dumps([{**SESSION, "cores": None}])])
@pytest.mark.parametrize("command", ["run", "report"])
def test_damaged_record_of_the_machine_is_named(home: Path, content: str, command: str, capsys) -> None:
    (home / MACHINE).write_text(content)
    words = run_words(home) if command == "run" else ("report", str(home))
    assert f"{home / MACHINE}: must be a list of calls" in refused(home, *words, capsys=capsys)


def test_files_that_cells_write_are_read(home: Path) -> None:
    assert read_result(home, CELL) == done("grpo", 1, 0.5)
    assert read_result(home, Cell(row="grpo", seed=2)) is None
    assert read_looks(home / "cells" / CELL.folder) == {"0": LOOK}
    assert read_sessions(home) == [SESSION]


def test_name_with_half_of_a_surrogate_pair_is_reported(home: Path) -> None:
    (home / MACHINE).write_text(json.dumps([SESSION | {"cpu": "\ud800"}]))
    assert main(["study", "report", str(home)]) == 0
    assert "\\ud800" in (home / "report.md").read_text()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"base": {"task": [1]}}, "base.task and base.task.tables must be mappings"),
        ({"base": {"task": {"tables": 7}}}, "base.task and base.task.tables must be mappings"),
        ({"arms": TREE["arms"] | {"../x": {}}}, "'..' names an arm or a value of the grid"),
        ({"arms": TREE["arms"] | {"": {}}}, "'' names an arm or a value of the grid"),
        ({"arms": TREE["arms"] | {"a b": {}}}, "'a b' names an arm"),
        ({"look_every": 0}, "greater than or equal to 1, got 0"),
        ({"sedes": [1]}, "unknown key sedes"),
    ],
)
def test_faulty_study_is_named(home: Path, changes: dict[str, Any], said: str) -> None:
    (home / "study.yaml").write_text(yaml.safe_dump(TREE | {"warmup": {"steps": 1}, "base": {}} | changes))
    with pytest.raises(BadInput, match=r"study\.yaml: ") as caught:
        load_study(home / "study.yaml")
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["2024-01-01", "!!binary aGk="])
def test_value_that_is_no_json_is_named(home: Path, value: str) -> None:
    text = yaml.safe_dump(TREE).replace("learner.preset: grpo", f"learner.lr: {value}")
    (home / "study.yaml").write_text(text)
    with pytest.raises(BadInput, match=r"must hold JSON values .* write it as a text"):
        load_study(home / "study.yaml")


def test_held_out_problems_are_read_before_anything_is_trained(home: Path, tmp_path: Path) -> None:
    study = TREE | {"warmup": {"steps": 1}, "base": {}, "test": {"source": str(tmp_path / "no"), "problems": 2}}
    (tmp_path / "new.yaml").write_text(yaml.safe_dump(study))
    with pytest.raises(BadInput, match="no such file or folder of problems"):
        run_study(tmp_path / "new.yaml", tmp_path / "new", 1, tmp_path / "models", False, "")
    assert not (tmp_path / "new").exists() and not (tmp_path / "models").exists()


def test_folder_that_cannot_be_made_is_named(home: Path, tmp_path: Path) -> None:
    for folder, models in ((home / MACHINE, tmp_path / "models"), (tmp_path / "new", home / MACHINE)):
        with pytest.raises(BadInput, match=r"machine\.json: the folder cannot be created \(File exists\)"):
            run_study(home / "study.yaml", folder, 1, models, False, "")


def test_folder_in_place_of_the_study_is_kept(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "study.yaml").rename(home / "file.yaml")
    (home / "study.yaml").mkdir()
    assert main(["study", "run", str(home / "file.yaml"), "--dir", str(home)]) != 0
    assert str(home / "study.yaml") in capsys.readouterr().err and (home / "study.yaml").is_dir()
