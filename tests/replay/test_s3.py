"""Tests the queue on an object store: a real HTTP server with the API of S3."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.replay.helpers import fill, open_store, train
from treeadv import wire
from treeadv.errors import BadInput
from treeadv.places import copy_command
from treeadv.replay import journal
from treeadv.replay.audit import audit
from treeadv.replay.figures import figures
from treeadv.replay.history import forests_of_step
from treeadv.replay.store import ReplayStore
from treeadv.storage.folder import Action, flush, open_folder
from treeadv.storage.objects import ObjectFolder
from treeadv.storage.sessions import next_session


def keys(client, name: str) -> list[str]:
    return [o["Key"] for o in client.list_objects_v2(Bucket=name).get("Contents", []) if not o["Key"].endswith("/")]


def test_run_on_s3_is_resumed_and_audited_from_the_bucket(bucket) -> None:
    name, client, uri = bucket
    store = open_store(uri, max_staleness=3)
    fill(store, 4)
    store.sync()
    fill(store, 2)
    steps = {s: train(store, 2, s) for s in (1, 2)}
    store.sync()
    store.commit(1)
    store.close()
    assert {k.split("/")[3] for k in keys(client, name)} == {"journal", "payloads", "lock"}
    store = open_store(uri, durable_step=1, max_staleness=3)
    assert train(store, 2, 2) == steps[2]
    fill(store, 1)
    store.close()
    assert [f.forest_id for f in forests_of_step(uri, 2)] == list(steps[2])
    report = audit(uri)
    assert report.sound and report.rows["admitted"]["forests"] == 7, report.table()


def test_unflushed_transitions_are_undone_after_a_resume(bucket) -> None:
    _, _, uri = bucket
    store = open_store(uri)
    kept = fill(store, 2)
    store.sync()
    fill(store, 2)
    del store  # the process dies, and the object store has the flushed part of journal and payloads
    store = open_store(uri, durable_step=0)
    assert [e.reserved.forest_id for e in store.ledger.live.values()] == kept
    assert fill(store, 1)[0].startswith("r0-000002-0")
    store.close()
    assert audit(uri).sound


def test_trained_payload_leaves_the_bucket_if_not_retained(bucket) -> None:
    name, client, uri = bucket
    store = open_store(uri, retain="unacknowledged", max_staleness=4)
    for step in (1, 2, 3):
        fill(store, 2, version=step - 1)
        store.sync()
        train(store, 2, step)
    assert sum(k.endswith(".arrow") for k in keys(client, name)) == 3
    store.commit(2)
    store.compact()
    assert sum(k.endswith(".arrow") for k in keys(client, name)) == 1
    store.close()
    report = audit(uri)
    assert report.sound and report.payloads_released == 4, report.table()
    with pytest.raises(BadInput, match=r"was deleted after training; train with queue.retain=all"):
        forests_of_step(uri, 1)


def test_damage_in_the_bucket_is_named(bucket) -> None:
    name, client, uri = bucket
    store = open_store(uri)
    fill(store, 2)
    store.close()
    key = next(k for k in keys(client, name) if k.endswith(".arrow"))
    data = bytearray(client.get_object(Bucket=name, Key=key)["Body"].read())
    data[-200] ^= 1
    client.put_object(Bucket=name, Key=key, Body=bytes(data))
    (fault,) = audit(uri).faults
    assert "r0-000001-0" in fault and "damaged" in fault


def test_pending_payload_is_readable_and_an_outage_is_no_damage(bucket) -> None:
    name, client, uri = bucket
    store = open_store(uri)
    fids = fill(store, 2)
    assert [wire.from_batch(store.payload(f))[0].forest_id for f in fids] == fids
    store.sync()
    assert [wire.from_batch(store.payload(f))[0].forest_id for f in fids] == fids

    def gone(*_: object) -> None:
        raise OSError("Connection refused")

    store.files.payloads._folder.read = gone
    with pytest.raises(BadInput, match=r"cannot be read \(Connection refused\); repair the access"):
        store.lease(2, 0)
    del store.files.payloads._folder.read
    (key,) = [k for k in keys(client, name) if k.endswith(".arrow")]
    client.delete_object(Bucket=name, Key=key)
    assert store.lease(2, 0) is None and store.ledger.totals["damaged", "forests"] == 2


def test_fsync_none_and_a_wrong_address_are_refused(bucket) -> None:
    _, _, uri = bucket
    with pytest.raises(BadInput, match="fsync=none never writes"):
        open_store(uri, fsync="none")
    with pytest.raises(BadInput, match="not a path or URI"):
        open_folder("nosuch://place")


def test_bucket_that_is_not_there_is_named_with_the_cause(s3: str, monkeypatch) -> None:
    monkeypatch.setattr(ObjectFolder, "connect", refuse)
    with pytest.raises(BadInput, match=r"^s3://b/x cannot be reached \(AWS Error .*\); check the address and the cred"):
        audit("s3://b/x")
    monkeypatch.undo()
    with pytest.raises(BadInput, match=r"^s3:// names no bucket; write s3://bucket/runs/NAME$"):
        audit("s3://")


def refuse(folder: ObjectFolder, uri: str) -> tuple[object, str]:
    """Raise the error of a bucket whose region Arrow cannot find."""
    raise OSError("AWS Error NETWORK_CONNECTION during HeadBucket operation")


def test_command_of_an_error_copies_the_files_of_a_run(bucket, tmp_path: Path) -> None:
    _, client, uri = bucket
    for name in ("config.yaml", "replay/journal/0.jsonl"):
        client.put_object(Bucket=bucket[0], Key=f"runs/one/{name}", Body=name.encode())
    command = copy_command(uri).replace("python", sys.executable, 1)
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    assert (tmp_path / "one" / "config.yaml").read_text() == "config.yaml"
    assert (tmp_path / "one" / "replay" / "journal" / "0.jsonl").is_file()


def test_last_opener_owns_the_run_and_the_earlier_one_stops(bucket) -> None:
    _, _, uri = bucket
    before = open_store(uri)
    kept = fill(before, 1)
    before.sync()
    fill(before, 1)
    after = open_store(uri)
    with pytest.raises(BadInput, match="another process has opened this run"):
        before.sync()
    assert fill(after, 1) != kept
    after.close()
    report = audit(uri)
    assert report.sound and report.rows["admitted"]["forests"] == 2, report.table()


def late(store: ReplayStore, parts: list[Action]) -> None:
    """Return the writes of a writer that pauses after its last check of the lock."""
    flush([p for p in parts if p != store.files.lock.check])


def test_late_upload_of_a_superseded_writer_is_ignored(bucket, caplog) -> None:
    _, _, uri = bucket
    before = open_store(uri, max_staleness=9)
    fill(before, 2)
    before.sync()
    fill(before, 2)
    parts = before.files.pending()
    after = open_store(uri, durable_step=0, max_staleness=9)
    fill(after, 4)
    steps = {1: train(after, 2, 1)}
    after.sync()
    late(before, parts)
    assert audit(uri).sound
    after.commit(1)
    steps[2] = train(after, 2, 2)
    after.close()
    report = audit(uri)
    assert report.sound and report.rows["admitted"]["forests"] == 6, report.table()
    again = open_store(uri, durable_step=1, max_staleness=9)
    assert "ignored records of a process that had lost the run" in caplog.text
    assert train(again, 2, 2) == steps[2]
    again.close()
    assert audit(uri).sound


def test_late_compaction_of_a_superseded_writer_deletes_nothing(bucket) -> None:
    """The snapshot of the earlier writer equals the state that the later writer reads. The later deletions of the
    earlier writer are refused."""
    name, client, uri = bucket
    before = open_store(uri, retain="unacknowledged", max_staleness=9)
    for _ in range(2):
        fill(before, 2)
        before.sync()
    train(before, 2, 1)
    before.sync()
    before.commit(1)
    before.journal_limit = 0
    *flushed, deletion, _, snapshot, clearing = before.compaction()
    flush(flushed)
    after = open_store(uri, durable_step=1, max_staleness=9)
    steps = train(after, 2, 2)
    after.sync()
    before = keys(client, name)
    for stale in (deletion, clearing):
        with pytest.raises(BadInput, match="another process has opened this run"):
            stale()
    assert keys(client, name) == before
    snapshot()
    for names in ([], clearing.names):
        for file_name in names:  # deletions that are in progress lose nothing
            client.delete_object(Bucket=name, Key=f"runs/one/replay/journal/{file_name}")
        report = audit(uri)
        assert report.steps == (1 if names else 2)  # a deleted part holds the record of step 1
        assert report.sound and report.rows["trained"]["forests"] == 2, report.table()
    after.close()
    again = open_store(uri, durable_step=1, max_staleness=9)
    assert train(again, 2, 2) == steps
    again.close()


def test_failed_resume_returns_the_run_to_its_owner(bucket) -> None:
    """A driver finds checkpoint 1, and then the run commits step 2. The driver cannot open the run, and the run keeps
    its owner."""
    _, _, uri = bucket
    store = open_store(uri, max_staleness=9)
    fill(store, 4)
    for step in (1, 2):
        train(store, 2, step)
    store.commit(2)
    store.sync()
    with pytest.raises(BadInput, match=r"checkpoint is of step 1, but the journal can resume from steps 2 to 2 only"):
        open_store(uri, durable_step=1, max_staleness=9)
    assert open_folder(uri).child("replay").owner() == (store.ledger.session, 0)
    fill(store, 1)
    store.close()
    report = audit(uri)
    assert report.sound and report.rows["admitted"]["forests"] == 5, report.table()


def test_second_of_two_simultaneous_opens_is_refused(bucket) -> None:
    _, _, uri = bucket
    replay = open_folder(uri).child("replay")
    first, second = next_session(replay), next_session(replay)
    replay.lock(first, 0)
    with pytest.raises(BadInput, match="at the same time"):
        replay.lock(min(first, second), 0)
    assert next_session(replay) > first


def test_many_flushes_make_few_journal_objects(bucket, monkeypatch) -> None:
    name, client, uri = bucket
    monkeypatch.setattr(journal, "_REWRITE_BELOW", 20_000)
    store = open_store(uri, max_staleness=99, retain="unacknowledged")
    with monkeypatch.context() as patch:
        patch.setattr(ObjectFolder, "sizes", None)  # a listing finds the session
        for step in range(1, 41):
            fill(store, 2, step - 1)
            train(store, 2, step)
            store.sync()
            if step % 10 == 0:
                store.commit(step)
                store.compact()
        assert figures(store)["disk_bytes"] > 0
    store.sync()
    found = client.list_objects_v2(Bucket=name)["Contents"]
    parts = [o["Size"] for o in found if o["Key"].endswith(".jsonl")]
    assert len(parts) == store.files.journal.size // 20_000 + 1 > 2
    assert figures(store)["disk_bytes"] == sum(o["Size"] for o in found if not o["Key"].endswith("lock"))
    ledger = store.ledger
    store.close()
    again = open_store(uri, durable_step=40, max_staleness=99)
    assert again.ledger.totals == ledger.totals and len(again.files.journal._names) == len(parts) + 1
    again.close()


def test_full_store_gives_a_one_line_error_with_the_remedy(bucket) -> None:
    name, client, uri = bucket
    store = open_store(uri)
    fill(store, 1)
    parts = store.files.pending()[:1]  # this happens before the check of the lock
    for key in [o["Key"] for o in client.list_objects_v2(Bucket=name)["Contents"]]:
        client.delete_object(Bucket=name, Key=key)
    client.delete_bucket(Bucket=name)
    with pytest.raises(BadInput, match=r"arrow\S* cannot be written \(.*\); check the address and the credentials"):
        flush(parts)
