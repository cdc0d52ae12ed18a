"""Beginning a run and going on with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.running import recipe
from treeadv.config import load
from treeadv.errors import BadInput
from treeadv.launch import begin
from treeadv.storage.run_folder import RunFolder


def test_resume_or_start_goes_on_by_what_the_recipe_says_now(tmp_path: Path, tiny_model: Path) -> None:
    first = begin(recipe(tmp_path, tiny_model), None, True, [])
    assert not first[2] and first[1].learner.count == 1
    folder, config, resumed = begin(recipe(tmp_path, tiny_model, learner__count=2), None, True, ["run.steps=50"])
    assert resumed and folder.path == first[0].path and (config.learner.count, config.run.steps) == (2, 50)
    assert load(folder.path / "config.yaml") == config  # a plain --resume goes on by the same


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("run.seed=5", r"run.seed: the run .* was begun with another \(0\)"),
        ("task.verifier=exact", "task: the run .* was begun with"),
    ],
)
def test_going_on_does_not_make_another_run_of_one(tmp_path: Path, tiny_model: Path, change: str, message: str) -> None:
    begin(recipe(tmp_path, tiny_model), None, True, [])
    before = (tmp_path / "run" / "config.yaml").read_text()
    for how in ((recipe(tmp_path, tiny_model), None, True), (None, str(tmp_path / "run"), False)):
        with pytest.raises(BadInput, match=message):
            begin(*how, [change])
    assert (tmp_path / "run" / "config.yaml").read_text() == before


def test_what_a_resume_changes_holds_from_then_on(tmp_path: Path, tiny_model: Path) -> None:
    begin(recipe(tmp_path, tiny_model), None, True, [])
    begin(None, str(tmp_path / "run"), False, ["learner.lr=0.5"])
    assert begin(None, str(tmp_path / "run"), False, [])[1].learner.lr == 0.5


def test_ended_run_refuses_requests_until_it_is_resumed(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.request({"generator": 3})
    folder.write("summary.json", {})
    with pytest.raises(BadInput, match="the run has ended"):
        folder.request({"generator": 4})
    folder.forget_end()
    assert folder.take_request() == {}
    folder.request({"generator": 4})


def test_no_request_for_actors_is_lost(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.request({"generator": 3})
    folder.request({"reward": 2})
    assert folder.take_request() == {"generator": 3, "reward": 2}
    assert folder.take_request() == {}


def test_half_written_record_is_ignored(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for step in (1, 2):
        folder.record({"step": step})
    with (tmp_path / "metrics.jsonl").open("a") as f:
        f.write('{"step": 3, "rew')
    assert [r["step"] for r in folder.records()] == [1, 2]
    folder.rewind(1)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n'
