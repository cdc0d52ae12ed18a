"""Tests runs whose queue, checkpoints and records are in an object store: a real HTTP server with the API of S3."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from actors import cli
from tests.learning import tiny
from tests.replay.test_s3 import keys
from tests.running import ROLES, finish, hosts, recipe, start, steps, wait_for
from treeadv.errors import BadInput
from treeadv.launch import launch
from treeadv.replay.audit import audit
from treeadv.storage.object_run import ObjectRunStore
from treeadv.storage.objects import ObjectFolder
from treeadv.storage.run_folder import RunFolder


def of(uri: str, tmp_path: Path, model: Path, **changes) -> Path:
    """Write a recipe of the run at `uri`."""
    base, _, query = uri.partition("?")
    return recipe(tmp_path, model, run__name="one", run__storage=f"{base.removesuffix('/one')}?{query}", **changes)


def recorded(uri: str) -> list[int]:
    return [json.loads(line)["step"] for line in ObjectRunStore(uri, Path()).pull("metrics.jsonl").splitlines()]


@pytest.mark.slow
def test_run_in_a_bucket_survives_the_death_of_its_queue(bucket, tmp_path, tiny_model):
    name, client, uri = bucket
    process = start("--config", of(uri, tmp_path, tiny_model, run__steps=5, generator__count=1))
    run = tmp_path / "one"
    wait_for(lambda: steps(run) >= 3, process)
    hosts(process.pid, "ReplayQueue")[0].kill()  # unwritten records are lost, so the run resumes
    finish(process)
    store = ObjectRunStore(uri, run)
    assert (
        recorded(uri) == [1, 2, 3, 4, 5]
        and json.loads(store.pull("summary.json"))["steps"] == 5
        and "<svg" in store.pull("report.html")
    )
    assert store.checkpoints() == [4, 5] and not list((run / "checkpoints").glob("*step*"))
    found = {k.split("/")[3] for k in keys(client, name) if "/checkpoints/" in k}
    assert {re.sub(r"-\d{6}-\w{8}", "", f) for f in found} == {
        "step-4",
        "step-4.json",
        "step-5",
        "step-5.json",
    } and len(found) == 4
    for named in (uri, str(run)):
        report = audit(named)
        assert report.sound and report.steps == report.committed_step == 5, report.table()


@pytest.mark.slow
def test_run_of_a_lost_machine_resumes_elsewhere_exactly_once(bucket, tmp_path, tiny_model):
    _, _, uri = bucket
    process = start("--config", of(uri, tmp_path, tiny_model, generator__count=1))
    wait_for(lambda: steps(tmp_path / "one") >= 3, process)
    ours = [p for role in ("verifier", *ROLES) for p in hosts(process.pid, role)]
    process.kill()
    process.wait()
    assert not psutil.wait_procs(ours, timeout=30)[1]
    shutil.rmtree(tmp_path / "one")
    finish(start("--resume", uri, f"run.root={tmp_path / 'elsewhere'}"))
    assert recorded(uri) == list(range(1, 7)) and steps(tmp_path / "elsewhere" / "one") == 6
    report = audit(uri)
    assert report.sound and report.rows["trained"]["forests"] == 6 * 3, report.table()


# ---- checkpoints -----------------------------------------------------------------------------------------------------
@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    (folder / "trainer").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "trainer" / ".metadata").write_bytes(b"state")
    return folder


def opened(store: ObjectRunStore, step: int) -> str:
    """Open a new session of the run from the checkpoint of `step` and return its name."""
    session = store.next_session()
    store._replay.lock(session, step)
    return session


def upload(store: ObjectRunStore, step: int, session: str, files: Path) -> None:
    store.write_checkpoint(step, session, lambda folder: shutil.copytree(files, folder, dirs_exist_ok=True))


def test_partial_upload_is_no_checkpoint_and_is_cleared(bucket, tmp_path, files):
    name, client, uri = bucket
    store = ObjectRunStore(uri, tmp_path / "one")
    folder = RunFolder(tmp_path / "one", store)
    session = opened(store, 0)
    upload(store, 1, session, files)
    store.seal(1, session, keep=2)
    upload(store, 2, session, files)  # the process dies before the checkpoint is sealed
    assert folder.last_checkpoint() == 1
    session = opened(store, 1)
    upload(store, 4, session, files)
    store.seal(4, session, keep=2)
    assert store.checkpoints() == [1, 4] and not any("/step-2-" in k for k in keys(client, name))
    upload(store, 5, session, files)
    store.seal(5, session, keep=2)
    assert store.checkpoints() == [4, 5] and not any("step-1" in k for k in keys(client, name))
    with folder.open_checkpoint(5) as local:
        assert (local / "trainer" / ".metadata").read_bytes() == b"state"
    assert not local.exists()


def test_checkpoint_of_a_superseded_driver_is_ignored(bucket, tmp_path, files):
    name, client, uri = bucket
    store = ObjectRunStore(uri, tmp_path / "one")
    before = opened(store, 0)
    upload(store, 1, before, files)
    store.seal(1, before, keep=2)
    upload(store, 3, before, files)  # the driver pauses here, and another driver considers it dead
    after = opened(store, 1)
    (files / "model.safetensors").write_bytes(b"others!")
    upload(store, 3, after, files)
    store.seal(3, after, keep=1)
    with pytest.raises(BadInput, match="another process has opened this run"):
        store.seal(3, before, keep=1)
    with pytest.raises(BadInput, match="another process has opened this run"):
        store._delete(f"step-3-{after}", before)
    assert not any(k.endswith(f"step-3-{before}.json") for k in keys(client, name))
    for step in (3, 5):  # the earlier driver may have checked the lock just before
        client.put_object(Bucket=name, Key=f"runs/one/checkpoints/step-{step}-{before}.json", Body=b'{"files": {}}')
    for _ in range(2):
        assert store.checkpoints()[-1] == 3
        with RunFolder(tmp_path / "one", store).open_checkpoint(3) as local:
            assert (local / "model.safetensors").read_bytes() == b"others!"
        opened(store, 3)


def test_checkpoint_that_lost_a_file_is_named_with_the_remedy(bucket, tmp_path, files):
    name, client, uri = bucket
    store = ObjectRunStore(uri, tmp_path / "one")
    session = opened(store, 0)
    upload(store, 3, session, files)
    store.seal(3, session, keep=1)
    client.put_object(Bucket=name, Key=f"runs/one/checkpoints/step-3-{session}/model.safetensors", Body=b"weigh")
    local = RunFolder(tmp_path / "one", store).open_checkpoint(3)
    lost, seal = r"step-3-\S+/model.safetensors has 5 bytes instead of 7", r"checkpoints/step-3-\S+.json"
    with pytest.raises(BadInput, match=f"{lost}; delete {seal}"):
        local.__enter__()


TWO_MACHINES = """
import sys
from pathlib import Path
import torch, torch.distributed as dist
from tests.learning import tiny
from tests.learning.test_trainer import FORESTS, weights_of
from treeadv.learning.trainer import Trainer
from treeadv.storage.run_folder import RunFolder
from treeadv.storage.object_run import ObjectRunStore
model, out, rank, uri = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
dist.init_process_group("gloo", init_method=f"file://{out}/store", rank=rank, world_size=2)
place = out / f"disk-{rank}"
disk = RunFolder(place, ObjectRunStore(uri, place))
t = Trainer(tiny.config(), model, rank=rank, world=2)
t.step(FORESTS, 0)
session = "000001-test"
disk.store.write_checkpoint(1, session, t.write_files)
dist.barrier()
if rank == 0:
    disk.store._replay.lock(session, 0)
    disk.store.seal(1, session, keep=1)
dist.barrier()
left = [p.name for p in place.iterdir()]
again = Trainer(tiny.config(), model, rank=rank, world=2)
with disk.open_checkpoint(1) as folder:
    again.restore(folder)
a, b = t.step(FORESTS, 1), again.step(FORESTS, 1)
weights = weights_of(again)
if rank == 0:
    torch.save({"losses": (a.loss, b.loss), "left": left, "weights": weights}, out / "result.pt")
dist.destroy_process_group()
"""


def test_ranks_without_a_shared_disk_checkpoint_through_store(bucket, tmp_path):
    from tests.learning.test_trainer import FORESTS, weights_of
    from treeadv.learning.trainer import Trainer

    name, client, uri = bucket
    model = tiny.folder(tmp_path, "smollm")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", TWO_MACHINES, model, str(tmp_path)]
    ranks = [subprocess.Popen([*command, str(rank), uri], env=environment) for rank in (0, 1)]
    assert [p.wait(timeout=120) for p in ranks] == [0, 0]
    result = torch.load(tmp_path / "result.pt", weights_only=False)
    assert result["losses"][0] == result["losses"][1] and result["left"] == []
    assert {f"shard-0000{n}-model-00001-of-00001.safetensors" for n in (1, 2)} <= {
        k.rpartition("/")[2] for k in keys(client, name)
    }
    alone = Trainer(tiny.config(), model)
    with RunFolder(tmp_path / "disk", ObjectRunStore(uri, tmp_path / "disk")).open_checkpoint(1) as folder:
        alone.restore(folder)
    alone.step(FORESTS, 1)
    again = weights_of(alone)
    assert all(
        torch.allclose(torch.as_tensor(again[n]), torch.as_tensor(w), atol=1e-5) for n, w in result["weights"].items()
    )


# ---- messages --------------------------------------------------------------------------------------------------------
def refused(capsys: pytest.CaptureFixture, *words: str | Path) -> str:
    assert cli.main(["train", *map(str, words)]) == 2
    out = capsys.readouterr().err
    assert out.startswith("treeadv: error: ") and out.count("\n") == 1
    return out


@pytest.mark.parametrize(
    ("storage", "said"),
    [
        ("s3:/b/x", "did you mean s3://b/x?"),
        ("s3:b/x", "did you mean s3://b/x?"),
        ("GS//b/x", "did you mean gs://b/x?"),
        ("b/x", "a folder of this machine is run.root=b/x"),
        ("s4://b/x", "unknown scheme s4, did you mean s3?"),
        ("s3://[b/x", "is no URI"),
        ("s3://key:secret@b/x", "without credentials"),
    ],
)
def test_bad_storage_is_refused_by_a_dry_run(storage, said, tmp_path, tiny_model, capsys):
    config = recipe(tmp_path, tiny_model)
    out = refused(capsys, "--config", config, "--dry-run", "--local", f"run.storage={json.dumps(storage)}")
    assert said in out and "secret" not in out


@pytest.mark.parametrize(
    "words",
    [
        ("train", "--resume", "s3:/b/x"),
        ("audit", "s3:/b/x"),
        ("scale", "s3:/b/x", "reward=1"),
        ("show", "s3:/b/x"),
        ("train", "--local", "--config", "{recipe}", "run.root=s3:/b/x"),
        ("train", "--local", "--config", "{recipe}", "task.source=s3:/b/x"),
        ("train", "--local", "--config", "{recipe}", "model.path=s3:/b/x"),
        ("grade", "a.jsonl", "--out", "s3:/b/x"),
    ],
)
def test_mistyped_uri_is_never_taken_for_a_path(words, tmp_path, tiny_model, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = recipe(tmp_path, tiny_model)
    with pytest.raises(SystemExit, match="2"):
        sys.exit(cli.main([word.format(recipe=config) for word in words]))
    assert "did you mean s3://b/x?" in capsys.readouterr().err
    assert not (tmp_path / "s3:").exists()


def test_google_store_is_asked_for_half_a_minute_at_most(monkeypatch):
    asked = []
    known = SimpleNamespace(from_uri=lambda uri: asked.append(uri) or (None, "b/x"))
    monkeypatch.setattr("treeadv.storage.objects.pafs", SimpleNamespace(FileSystem=known))
    for uri in ("gs://b/x", "gs://b/x?scheme=http", "gcs://b/x?retry_limit_seconds=9", "s3://b/x?region=r"):
        ObjectFolder(uri)
    assert asked == [
        "gs://b/x?retry_limit_seconds=30",
        "gs://b/x?scheme=http&retry_limit_seconds=30",
        "gcs://b/x?retry_limit_seconds=9",
        "s3://b/x?region=r",
    ]


def test_bad_storage_gives_one_line_and_creates_no_file(bucket, tmp_path, tiny_model, capsys):
    name, _, uri = bucket
    config = of(uri, tmp_path, tiny_model)

    def storage(uri: str) -> str:
        return refused(capsys, "--config", config, f"run.storage={json.dumps(uri)}")

    assert "The specified bucket does not exist" in storage(uri.replace(name, "nosuch").replace("/one", ""))
    assert "write a URI, such as s3://bucket/runs; a folder of this machine is run.root=" in storage("/data/runs")
    out = storage("s3://key:secret@bucket/runs")
    assert "write a URI without credentials" in out and "secret" not in out
    assert "unknown scheme s4" in storage("s4://bucket/runs")
    assert "queue.fsync=none never writes to s3://" in refused(capsys, "--config", config, "queue.fsync=none")
    assert "name an object store in run.storage" in refused(capsys, "--config", config, "run.root=s3://bucket/runs")
    assert f"{uri} holds no run (no config.yaml)" in refused(capsys, "--resume", uri)
    assert not (tmp_path / "one").exists()


def test_run_in_a_bucket_is_shown_reported_and_audited(bucket, tmp_path, tiny_model, monkeypatch, capsys):
    name, client, uri = bucket
    few = ("run.steps=2", "generator.count=1", "learner.forests_per_step=2", "sampling.leaves=2")
    assert cli.main(["train", "--local", "--config", str(of(uri, tmp_path, tiny_model)), *few]) == 0
    shutil.rmtree(tmp_path / "one")  # the machine is lost
    client.delete_object(Bucket=name, Key="runs/one/report.html")
    monkeypatch.chdir(tmp_path)
    before = {path.name for path in tmp_path.iterdir()}

    def said(*words: str, code: int = 0) -> str:
        capsys.readouterr()
        assert cli.main([*words]) == code
        out, err = capsys.readouterr()
        assert code == 0 or err.count("\n") == 1
        return " ".join((err if code else out).split())

    assert f"4 forests; treeadv show {shlex.quote(uri)} --step N draws a step" in said("show", uri)
    assert "2 leaves in 2 trees" in said("show", uri, "--step", "2", "--index", "0", "--model", str(tiny_model))
    assert said("report", uri) == f"report.html in {uri}"
    assert b"Run one" in client.get_object(Bucket=name, Key="runs/one/report.html")["Body"].read()
    assert said("audit", uri).endswith(" sound")
    assert f"the journal of {uri} has steps up to 2" in said("show", uri, "--step", "9", code=2)
    for command in ("show", "report"):
        assert "/two" in (line := said(command, uri.replace("/one", "/two"), code=2)) and "holds no run" in line
    assert {path.name for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"run: [", "is not YAML"),
        (b"[1]", "a configuration is a mapping of sections, found list"),
        (b"a: " + b"9" * 5000, "an integer has more than 4300 digits"),
        (b"\xff\xfe", "is not UTF-8 text (byte 0); restore the file"),
    ],
)
def test_damaged_configuration_in_a_bucket_is_named(bucket, tmp_path, content, said, monkeypatch, capsys):
    name, client, uri = bucket
    monkeypatch.chdir(tmp_path)
    client.put_object(Bucket=name, Key="runs/one/config.yaml", Body=content)
    line = refused(capsys, "--resume", uri)
    assert f"{uri}/config.yaml" in line and said in line
    assert list(tmp_path.iterdir()) == []


def test_store_that_does_not_answer_gives_a_one_line_error(bucket, tmp_path, tiny_model, capsys):
    closed = "s3://bucket/runs/one?scheme=http&endpoint_override=127.0.0.1:9&region=us-east-1"
    out = refused(capsys, "--config", of(closed, tmp_path, tiny_model))
    assert (
        "run.storage: s3://bucket/runs/one" in out
        and "cannot be written" in out
        and "check the address and the credentials" in out
    )
    assert not (tmp_path / "one").exists()


def test_run_in_a_store_is_resumed_and_not_started_twice(bucket, tmp_path, tiny_model, files, capsys):
    _, _, uri = bucket
    config = of(uri, tmp_path, tiny_model)
    new = launch(config, None, True, [])
    new.lock.release()
    folder, first = new.folder, new.config
    assert not new.resumed
    folder.record({"step": 1})
    folder.store.push()
    session = opened(folder.store, 0)
    upload(folder.store, 1, session, files)
    folder.store.seal(1, session, keep=1)
    shutil.rmtree(folder.path)
    assert f"{uri} holds a run: choose another run.name, or resume the run with --resume '{uri}'" in refused(
        capsys, "--config", config
    )
    again = launch(config, None, True, [])
    again.lock.release()
    assert again.resumed and (again.folder.path, again.config) == (folder.path, first)
    assert again.folder.records() == [{"step": 1}]
    again.folder.record({"step": 2})  # the store does not have this record, because no checkpoint has it
    by_path = launch(None, str(folder.path), False, ["run.steps=9"])
    by_path.lock.release()
    assert by_path.config.run.steps == 9 and by_path.folder.records() == [{"step": 1}]
    (tmp_path / "one" / "config.yaml").write_text(
        first.model_copy(update={"run": first.run.model_copy(update={"storage": ""})}).to_yaml()
    )
    assert f"run folder {folder.path} belongs to another run than {uri}" in refused(capsys, "--resume", uri)
