"""Tests the start of a run in one process: while another driver owns the run, on a full disk, and with a damaged
record."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.local.test_training import command, local_recipe, records, train
from treeadv.replay.audit import audit

WATCHED = ("config.yaml", "targets.json", "metrics.jsonl", "replay/journal")


def watched(run: Path) -> dict[str, bytes]:
    """Return the content of the files that a second driver could change."""
    paths = [p for name in WATCHED for p in (run / name, *(run / name).rglob("*")) if p.is_file()]
    return {str(p.relative_to(run)): p.read_bytes() for p in paths}


@pytest.mark.parametrize("local", [["--local"], pytest.param([], marks=pytest.mark.slow)])
def test_second_driver_leaves_the_live_run_unchanged(tiny_model: Path, tmp_path: Path, local: list[str]) -> None:
    path = local_recipe(tmp_path, tiny_model, "live", "run.steps=500", "run.checkpoint_every=400")
    run = tmp_path / "live"
    live = subprocess.Popen(command("--config", path), stdout=subprocess.DEVNULL)
    try:
        while not (run / "metrics.jsonl").is_file() or len(records(run)) < 2:
            assert live.poll() is None
            time.sleep(0.01)
        (run / "targets.json").write_text("[]")  # this file belongs to the driver with Ray
        live.send_signal(signal.SIGSTOP)  # only the second driver can change files now
        before = watched(run)
        second = [*command()[:4], *local, "--resume", str(run), "learner.lr=0.5"]
        done = subprocess.run(second, capture_output=True, text=True, timeout=100)
        assert (done.returncode, watched(run)) == (2, before)
        assert f"in use by process {live.pid}; stop that run" in done.stderr
        live.send_signal(signal.SIGCONT)
        while len(records(run)) < 5:
            assert live.poll() is None
            time.sleep(0.01)
        live.send_signal(signal.SIGINT)
        assert live.wait(60) == 0
    finally:
        live.kill()
        live.wait()
    assert [r["step"] for r in records(run)] == list(range(1, len(records(run)) + 1))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting a file system needs root")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.mark.parametrize("pages", [0, 2, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 3))])
def test_same_command_starts_after_a_full_disk(
    pages: int, small_disk: Path, tiny_model: Path, tmp_path: Path, capsys
) -> None:
    config = local_recipe(tmp_path, tiny_model, "run", "run.steps=1")
    arguments = ("--config", config, f"run.root={small_disk}")
    free = os.statvfs(small_disk).f_bavail * 4096
    (small_disk / "filler").write_bytes(bytes(free - pages * 4096))
    assert train(*arguments) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert [p.name for p in small_disk.iterdir()] == ["filler"]
    (small_disk / "filler").unlink()
    assert train(*arguments) == 0
    assert [r["step"] for r in records(small_disk / "run")] == [1]


def test_resume_ignores_a_damaged_record_after_the_checkpoint(tiny_model: Path, tmp_path: Path) -> None:
    path = local_recipe(tmp_path, tiny_model, "run", "run.steps=2")
    assert train("--config", path) == 0
    with (tmp_path / "run" / "metrics.jsonl").open("ab") as f:
        f.write(b'{"step": \xff\n{"step": 4}\n')
    assert train("--resume", tmp_path / "run", "run.steps=3") == 0
    assert [r["step"] for r in records(tmp_path / "run")] == [1, 2, 3]


@pytest.mark.parametrize("checkpoint_every", [1, pytest.param(400, marks=pytest.mark.slow)])
def test_run_resumes_after_the_file_size_limit_ended_it(
    tiny_model: Path, tmp_path: Path, checkpoint_every: int
) -> None:
    """In one case the first checkpoint exceeds the limit. In other cases the journal or the records exceed it after
    some steps."""
    path = local_recipe(tmp_path, tiny_model, "run", "run.steps=400", f"run.checkpoint_every={checkpoint_every}")
    limit = (12_000, resource.RLIM_INFINITY)
    limited = subprocess.run(
        command("--config", path), capture_output=True, text=True, timeout=100,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )  # fmt: skip
    assert limited.returncode == 2 and "Traceback" not in limited.stderr, limited.stderr
    last = limited.stderr.strip().splitlines()[-1]
    assert (
        "cannot be written (File too large)" in last and "what was done is kept: treeadv train --local --resume" in last
    )
    assert audit(str(tmp_path / "run")).sound
    assert train("--resume", tmp_path / "run", "run.steps=3") == 0
    assert [r["step"] for r in records(tmp_path / "run")] == [1, 2, 3]


def test_read_only_disk_is_named_in_one_line(small_disk: Path, tiny_model: Path, tmp_path: Path, capsys) -> None:
    config = local_recipe(tmp_path, tiny_model, "run", "run.steps=1")
    assert train("--config", config, f"run.root={small_disk}") == 0
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    capsys.readouterr()
    for arguments in (("--resume", small_disk / "run"), ("--config", config, f"run.root={small_disk}", "run.name=b")):
        assert train(*arguments, "run.steps=2") == 2
        shown = capsys.readouterr().err
        assert "(Read-only file system)" in shown and shown.count("\n") == 1, shown
