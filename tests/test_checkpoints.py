"""Tests the checkpoints in the store of a run: seals and checksums, damage, and the number of kept checkpoints."""

from __future__ import annotations

import errno
import os
import re
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.replay.helpers import Clock, fill, train
from treeadv.config import QueueConfig
from treeadv.errors import BadInput
from treeadv.replay.audit import audit
from treeadv.replay.store import ReplayStore
from treeadv.storage.object_run import ObjectRunStore
from treeadv.storage.run_folder import RunFolder
from treeadv.storage.run_store import LocalRunStore


def write(text: str) -> Callable[[Path], None]:
    def files(folder: Path) -> None:
        (folder / "trainer").mkdir(exist_ok=True)
        (folder / "model.safetensors").write_text(f"weights {text}")
        (folder / "trainer" / "state").write_text(f"state {text}")

    return files


def save(store: LocalRunStore, *steps: int, keep: int = 2) -> None:
    for step in steps:
        store.write_checkpoint(step, "session", write(f"of step {step}"))
        store.seal(step, "session", keep)


def flip(folder: Path) -> None:
    data = bytearray((folder / "trainer" / "state").read_bytes())
    data[3] ^= 1
    (folder / "trainer" / "state").write_bytes(data)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "flipped bit": flip,
    "cut file": lambda folder: os.truncate(folder / "model.safetensors", 3),
    "missing file": lambda folder: (folder / "model.safetensors").unlink(),
    "missing manifest": lambda folder: (folder / "files.json").unlink(),
    "cut manifest": lambda folder: os.truncate(folder / "files.json", 9),
    "deep manifest": lambda folder: (folder / "files.json").write_text("[" * 100_000),
    "other manifest": lambda folder: (folder / "files.json").write_text('["model.safetensors"]'),
    "manifest without files": lambda folder: (folder / "files.json").write_text("{}"),
    "manifest without sizes": lambda folder: (folder / "files.json").write_text('{"model.safetensors": 7}'),
    "manifest of a number": lambda folder: (folder / "files.json").write_text("7"),
    "manifest that is a folder": lambda folder: [(folder / "files.json").unlink(), (folder / "files.json").mkdir()],
    "empty folder": lambda folder: [shutil.rmtree(folder), folder.mkdir()],
    "missing folder": shutil.rmtree,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_newest_checkpoint_is_skipped(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    save(LocalRunStore(tmp_path), 2, 4)
    DAMAGE[damage](tmp_path / "checkpoints" / "step-4")
    store = LocalRunStore(tmp_path)
    assert store.newest_valid() == 2
    assert store.newest_valid() == 2
    assert caplog.text.count("checkpoints/step-4 is ignored") == (damage != "missing folder")
    assert not re.search(r"object|subscript|operand|Errno|limit", caplog.text.replace("a JSON object is", ""))
    save(store, 3)
    assert store.checkpoints() == [2, 3], "the damaged checkpoint has steps that the resume has undone"


def test_whole_checkpoint_is_found_by_another_process(tmp_path: Path) -> None:
    save(LocalRunStore(tmp_path), 1, 2, 3)
    assert LocalRunStore(tmp_path).newest_valid() == 3
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-2", "step-3"]
    with RunFolder(tmp_path).open_checkpoint(3) as folder:
        assert (folder / "trainer" / "state").read_text() == "state of step 3"


@pytest.mark.parametrize("name", ["step-4.damaged", "step-", "step-x", "step-07", "step-٣", "old", ".step-9-session"])
def test_stray_folder_is_no_checkpoint(tmp_path: Path, name: str) -> None:
    store = LocalRunStore(tmp_path)
    save(store, 2)
    (tmp_path / "checkpoints" / name).mkdir()
    assert store.checkpoints() == [2] and store.newest_valid() == 2
    save(store, 3)


@pytest.mark.parametrize("name", ["step-7", ".step-7-session"])
def test_stray_file_does_not_end_the_run(tmp_path: Path, name: str) -> None:
    store = LocalRunStore(tmp_path)
    save(store, 2)
    (tmp_path / "checkpoints" / name).write_text("a note")
    assert store.newest_valid() == 2
    save(store, 3, 7)
    assert store.checkpoints() == [3, 7]


def test_link_to_a_checkpoint_on_another_disk_is_deleted_alone(tmp_path: Path) -> None:
    store = LocalRunStore(tmp_path)
    save(store, 2)
    (tmp_path / "checkpoints" / "step-2").rename(tmp_path / "moved")
    (tmp_path / "checkpoints" / "step-2").symlink_to(tmp_path / "moved")
    (tmp_path / "checkpoints" / "step-9").symlink_to(tmp_path / "nowhere")
    assert LocalRunStore(tmp_path).newest_valid() == 2
    save(store, 3, 4)
    assert store.checkpoints() == [3, 4] and (tmp_path / "moved" / "files.json").is_file()


@pytest.mark.parametrize("text", ["{", "[]", '{"step": null}', '{"step": Infinity}', "[" * 100_000])
def test_damaged_file_of_the_best_step_is_no_error(tmp_path: Path, text: str) -> None:
    store = LocalRunStore(tmp_path)
    save(store, 2)
    store.keep_best(2, {"step": 2})
    assert store.best_step() == 2
    (tmp_path / "best" / "evaluation.json").write_text(text)
    assert store.best_step() is None
    store.keep_best(2, {"step": 2})
    assert store.best_step() == 2


def test_run_without_a_whole_checkpoint_is_at_step_0(tmp_path: Path) -> None:
    store = LocalRunStore(tmp_path)
    assert store.newest_valid() == 0
    save(store, 1)
    flip(tmp_path / "checkpoints" / "step-1")
    assert LocalRunStore(tmp_path).newest_valid() == 0


def test_unsealed_checkpoint_is_ignored(tmp_path: Path) -> None:
    store = LocalRunStore(tmp_path)
    save(store, 1)
    store.write_checkpoint(2, "session", write("cut off"))
    assert store.checkpoints() == [1]
    save(LocalRunStore(tmp_path), 2)
    assert not list((tmp_path / "checkpoints").glob(".*"))


def queue(run: Path, session: str, step: int) -> ReplayStore:
    return ReplayStore(
        str(run), QueueConfig(max_staleness=3), forests_per_step=2, seed=0, session=session, step=step, clock=Clock()
    )


@pytest.mark.parametrize("damage", ["flipped bit", "missing folder"])
def test_run_resumes_from_the_checkpoint_before_a_damaged_one(tmp_path: Path, damage: str) -> None:
    """The queue returns to the earlier checkpoint. Later forests are trained again in the same order, each once."""
    store, replay = LocalRunStore(tmp_path), queue(tmp_path, "one", 0)
    steps = {}
    for step in range(1, 6):
        fill(replay, 2, step - 1)
        steps[step] = train(replay, 2, step)
        if step in (2, 4):
            save(store, step)
            replay.commit(step, min(store.checkpoints()))
    replay.close()
    DAMAGE[damage](tmp_path / "checkpoints" / "step-4")
    store = LocalRunStore(tmp_path)
    step = store.newest_valid()
    assert step == 2
    replay = queue(tmp_path, "two", step)
    assert {n: train(replay, 2, n) for n in (3, 4, 5)} == {n: steps[n] for n in (3, 4, 5)}
    save(store, 5)
    replay.commit(5, min(store.checkpoints()))
    replay.close()
    report = audit(str(tmp_path))
    assert report.sound and report.rows["trained"]["forests"] == 10, report.table()
    with pytest.raises(
        BadInput, match="the checkpoint is of step 1, but the journal can resume from steps 2 to 5 only"
    ):
        queue(tmp_path, "three", 1)


def test_store_skips_a_checkpoint_with_a_missing_file(bucket, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    name, client, uri = bucket
    store = ObjectRunStore(uri, tmp_path)
    session = store.next_session()
    store._replay.lock(session, 0)
    for step in (2, 4):
        store.write_checkpoint(step, session, write(f"of step {step}"))
        store.seal(step, session, keep=2)
    with store.local_copy(4) as folder:
        assert (folder / "trainer" / "state").read_text() == "state of step 4"
    client.delete_object(Bucket=name, Key=f"runs/one/checkpoints/step-4-{session}/trainer/state")
    assert store.newest_valid() == 2 and "trainer/state is missing" in caplog.text
    store.write_checkpoint(3, session, write("of step 3"))
    store.seal(3, session, keep=2)
    assert store.checkpoints() == [2, 3]


def test_store_names_a_damaged_file_and_the_remedy_works(bucket, tmp_path: Path) -> None:
    name, client, uri = bucket
    store = ObjectRunStore(uri, tmp_path)
    session = store.next_session()
    store._replay.lock(session, 0)
    for step in (2, 4):
        store.write_checkpoint(step, session, write(f"of step {step}"))
        store.seal(step, session, keep=2)
    key = f"runs/one/checkpoints/step-4-{session}"
    client.put_object(Bucket=name, Key=f"{key}/trainer/state", Body=b"state of step 5")
    with pytest.raises(
        BadInput, match=rf"step-4-{session}/trainer/state is damaged .*; delete checkpoints/step-4-{session}.json"
    ):
        store.local_copy(4).__enter__()
    client.delete_object(Bucket=name, Key=f"{key}.json")
    assert store.newest_valid() == 2


@pytest.fixture
def size_limit() -> Iterator[Callable[[int], None]]:
    """Limit the size of files, so that a larger write fails with EFBIG."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_file_over_the_size_limit_gives_a_one_line_error(tmp_path: Path, size_limit: Callable[[int], None]) -> None:
    """The limit applies to the queue, the records and a checkpoint. Data that was stored earlier remains."""
    folder, replay = RunFolder(tmp_path), queue(tmp_path, "one", 0)
    fill(replay, 2)
    folder.record({"step": 1})
    save(LocalRunStore(tmp_path), 1)
    size_limit(5)
    with pytest.raises(BadInput, match=r"\.jsonl: cannot be written \(File too large\); stored data is not lost"):
        fill(replay, 1)
    with pytest.raises(BadInput, match=r"metrics.jsonl: cannot be written \(File too large\); stored data is not lost"):
        folder.record({"step": 2})
    with pytest.raises(BadInput, match=r"step-2-session: cannot be written \(File too large\)"):
        save(LocalRunStore(tmp_path), 2)
    size_limit(1 << 20)
    replay.close()
    assert LocalRunStore(tmp_path).newest_valid() == 1
    assert audit(str(tmp_path)).rows["ready"]["forests"] == 2
    assert [r["step"] for r in folder.records()] == [1]


@pytest.fixture
def immutable() -> Iterator[Callable[[Path], None]]:
    """Return a function that makes a file or folder immutable until the end of the test. Changes then fail with EPERM,
    even for root."""
    made: list[Path] = []

    def make(path: Path) -> None:
        if subprocess.run(["chattr", "+i", path], capture_output=True).returncode:
            pytest.skip("this user or file system has no immutable files")
        made.append(path)

    yield make
    for path in made:
        subprocess.run(["chattr", "-i", path], check=True)


def test_old_checkpoint_that_cannot_be_deleted_is_named(tmp_path: Path, immutable: Callable[[Path], None]) -> None:
    """The new checkpoint must be complete."""
    save(LocalRunStore(tmp_path), 1, 2)
    immutable(tmp_path / "checkpoints" / "step-1" / "trainer")
    with pytest.raises(BadInput, match=r"cannot be deleted \(Operation not permitted\); stored data is not lost"):
        save(LocalRunStore(tmp_path), 3)
    assert LocalRunStore(tmp_path).newest_valid() == 3


def test_immutable_run_gives_a_one_line_error(tmp_path: Path, immutable: Callable[[Path], None]) -> None:
    folder, replay = RunFolder(tmp_path), queue(tmp_path, "one", 0)
    fill(replay, 2)
    folder.record({"step": 1})
    save(LocalRunStore(tmp_path), 1)
    folder.write("summary.json", {})
    replay.close()
    for path in (tmp_path / "metrics.jsonl", tmp_path / "checkpoints", tmp_path):
        immutable(path)
    for action, wrong in (
        (lambda: folder.record({"step": 2}), r"metrics.jsonl: cannot be written"),
        (lambda: save(LocalRunStore(tmp_path), 2), r"step-2-session: cannot be written"),
        (lambda: folder.write("targets.json", []), r"targets.json: cannot be written"),
        (folder.clear_end, r"summary.json: cannot be deleted"),
    ):
        with pytest.raises(BadInput, match=wrong + r" \(Operation not permitted\); stored data is not lost"):
            action()
    assert LocalRunStore(tmp_path).newest_valid() == 1
    assert [r["step"] for r in folder.records()] == [1]


def test_best_weights_are_copied_where_there_are_no_hard_links(tmp_path: Path, monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    store = LocalRunStore(tmp_path)
    save(store, 1)
    store.keep_best(1, {"step": 1})
    assert (tmp_path / "best" / "model.safetensors").read_text() == "weights of step 1" and store.best_step() == 1
