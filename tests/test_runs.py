"""Tests the launch of a new run, of a resumed run, and of a run that another driver owns."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.running import recipe
from treeadv.config import load
from treeadv.errors import BadInput
from treeadv.launch import Launch, launch
from treeadv.storage.lock import LocalLock
from treeadv.storage.run_folder import RunFolder


def launch_once(*arguments) -> Launch:
    """Launch a run and release its lock, as the driver does at its end."""
    run = launch(*arguments)
    run.lock.release()
    return run


def files(run: Path) -> dict[str, bytes]:
    """Return the content of every file of a run folder."""
    return {str(p.relative_to(run)): p.read_bytes() for p in run.rglob("*") if p.is_file()}


def test_resume_or_start_takes_the_configuration_of_the_recipe(tmp_path: Path, tiny_model: Path) -> None:
    first = launch_once(recipe(tmp_path, tiny_model), None, True, [])
    assert not first.resumed and first.config.learner.count == 1
    second = launch_once(recipe(tmp_path, tiny_model, learner__count=2), None, True, ["run.steps=50"])
    assert second.resumed and second.folder.path == first.folder.path
    assert (second.config.learner.count, second.config.run.steps) == (2, 50)
    second.accept(0)
    assert load(tmp_path / "run" / "config.yaml") == second.config  # a plain --resume has the same configuration


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("run.seed=5", r"run.seed: the run .* has another \(0\)"),
        ("task.verifier=exact", "task: the run .* has another"),
    ],
)
def test_resume_refuses_changes_that_make_another_run(
    tmp_path: Path, tiny_model: Path, change: str, message: str
) -> None:
    launch_once(recipe(tmp_path, tiny_model), None, True, [])
    before = files(tmp_path / "run")
    for how in ((recipe(tmp_path, tiny_model), None, True), (None, str(tmp_path / "run"), False)):
        with pytest.raises(BadInput, match=message):
            launch_once(*how, [change])
    assert files(tmp_path / "run") == before
    launch_once(None, str(tmp_path / "run"), False, [])  # a refused launch releases the lock


def test_launch_changes_no_file_until_the_run_is_accepted(tmp_path: Path, tiny_model: Path) -> None:
    folder = launch_once(recipe(tmp_path, tiny_model), None, True, []).folder
    for step in (1, 2):
        folder.record({"step": step})
    folder.write("summary.json", {})
    before = files(folder.path)
    run = launch_once(None, str(folder.path), False, ["learner.lr=0.5"])
    assert run.config.learner.lr == 0.5 and files(folder.path) == before
    run.accept(1)
    assert load(folder.path / "config.yaml").learner.lr == 0.5
    assert [r["step"] for r in folder.records()] == [1] and not (folder.path / "summary.json").exists()


@pytest.mark.parametrize("how", ["config", "resume", "resume_or_start"])
def test_second_driver_is_refused_and_changes_nothing(tmp_path: Path, tiny_model: Path, how: str) -> None:
    file = recipe(tmp_path, tiny_model)
    run = launch(file, None, True, [])
    run.folder.record({"step": 1})
    before = files(run.folder.path)
    arguments = {"config": (file, None, False), "resume": (None, str(run.folder.path), False)}
    message = "exists" if how == "config" else f"in use by process {os.getpid()}"
    with pytest.raises(BadInput, match=message):
        launch(*arguments.get(how, (file, None, True)), ["learner.lr=0.5"])
    assert files(run.folder.path) == before
    run.lock.release()


@pytest.mark.parametrize("limit", [0, 40])
def test_new_run_on_a_full_disk_leaves_nothing(tmp_path: Path, tiny_model: Path, limit: int) -> None:
    """A file size limit of 0 bytes refuses every write, as a full disk does."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "from pathlib import Path; from treeadv.storage.run_folder import RunFolder; from treeadv.config import load;"
        f"config = load(Path(sys.argv[1])); resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}));"
        "RunFolder.create(config, 'run')"
    )
    file = recipe(tmp_path, tiny_model)
    done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, timeout=120)
    assert "BadInput" in done.stderr and "cannot be created (File too large)" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["recipe.yaml"]
    assert not launch_once(file, None, False, []).resumed


def test_damaged_record_after_the_checkpoint_is_dropped(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for step in (1, 2):
        folder.record({"step": step})
    with (tmp_path / "metrics.jsonl").open("ab") as f:
        f.write(b'{"step": 3, \xff\n{"step": 4}\n')
    with pytest.raises(BadInput, match="line 3 is damaged"):
        folder.records()
    folder.rewind(2)
    assert [r["step"] for r in folder.records()] == [1, 2]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("{", "not JSON"),
        ("[]", "a JSON object is needed, found list"),
        ('"step"', "a JSON object is needed, found str"),
        ("7", "a JSON object is needed, found int"),
        ("{}", "it has no step"),
        ('{"step": "x"}', "step is 'x', not an integer"),
        ('{"step": null}', "step is None, not an integer"),
        ('{"step": ' + "9" * 5000 + "}", "an integer has more than 4300 digits"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_damaged_record_before_the_checkpoint_is_named(tmp_path: Path, damage: str, said: str) -> None:
    folder = RunFolder(tmp_path)
    for name, read in (("metrics.jsonl", folder.records), ("evaluations.jsonl", folder.evaluations)):
        with (tmp_path / name).open("a") as f:
            f.write(damage + "\n")
        with pytest.raises(BadInput, match=rf"{name}: line 1 is damaged \(.*{said}.*\): restore the file"):
            read()


def test_records_that_cannot_be_read_are_not_taken_for_none(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(BadInput, match=r"metrics\.jsonl: cannot be read \(Is a directory\)"):
        RunFolder(tmp_path).records()


def test_ended_run_refuses_requests_until_it_is_resumed(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.request({"generator": 3})
    folder.write("summary.json", {})
    with pytest.raises(BadInput, match="the run has ended"):
        folder.request({"generator": 4})
    folder.clear_end()
    assert folder.take_request() == {}
    folder.request({"generator": 4})


def test_no_request_for_actors_is_lost(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.request({"generator": 3})
    folder.request({"reward": 2})
    assert folder.take_request() == {"generator": 3, "reward": 2}
    assert folder.take_request() == {}


@pytest.mark.parametrize("text", ["", "{", "-5", "0", '"x"', "[3]", "1e400", "9" * 5000, "[" * 100_000])
def test_file_that_is_no_request_does_not_end_the_run(tmp_path: Path, text: str, caplog) -> None:
    folder = RunFolder(tmp_path)
    folder.request({"reward": 2})
    (tmp_path / "scale-generator.json").write_text(text)
    (tmp_path / "scale-learner.json").mkdir()
    assert folder.take_request() == {"reward": 2}
    assert "scale-generator.json is ignored" in caplog.text
    assert folder.take_request() == {}


def test_lock_that_is_no_text_is_still_in_use(tmp_path: Path) -> None:
    lock = LocalLock(tmp_path)
    (tmp_path / "lock").write_bytes(b"\xff\x1b[31m")
    with pytest.raises(BadInput, match="is in use by"):
        LocalLock(tmp_path)
    lock.release()


def test_file_system_without_locks_gives_one_line(tmp_path: Path, monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(BadInput, match=r"lock: cannot be locked .*choose a run.root"):
        LocalLock(tmp_path)


def test_half_written_record_is_ignored(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for step in (1, 2):
        folder.record({"step": step})
    with (tmp_path / "metrics.jsonl").open("a") as f:
        f.write('{"step": 3, "rew')
    assert [r["step"] for r in folder.records()] == [1, 2]
    folder.rewind(1)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n'
