"""The queue on an object store: a real HTTP server that speaks S3."""

from __future__ import annotations

import pytest

from tests.replay.helpers import fill, open_store, train
from treeadv import wire
from treeadv.errors import BadInput
from treeadv.replay.audit import audit
from treeadv.replay.files import Folder, flush
from treeadv.replay.history import forests_of_step


def keys(client, name: str) -> list[str]:
    return [o["Key"] for o in client.list_objects_v2(Bucket=name).get("Contents", []) if not o["Key"].endswith("/")]


def test_a_run_on_s3_is_resumed_and_audited_from_the_bucket(bucket) -> None:
    name, client, uri = bucket
    store = open_store(uri, max_staleness=3)
    fill(store, 4)
    store.sync()
    fill(store, 2)
    steps = {s: train(store, 2, s) for s in (1, 2)}
    store.sync()
    store.commit(1)
    store.close()
    assert {k.split("/")[3] for k in keys(client, name)} == {"journal", "segments", "lock"}
    store = open_store(uri, durable_step=1, max_staleness=3)
    assert train(store, 2, 2) == steps[2]
    fill(store, 1)
    store.close()
    assert [f.forest_id for f in forests_of_step(uri, 2)] == list(steps[2])
    report = audit(uri)
    assert report.sound and report.rows["admitted"]["forests"] == 7, report.table()


def test_what_was_not_flushed_is_as_if_it_had_not_been(bucket) -> None:
    _, _, uri = bucket
    store = open_store(uri)
    kept = fill(store, 2)
    store.sync()
    fill(store, 2)
    del store  # the process dies: an object store holds what was flushed, journal and payload alike
    store = open_store(uri, durable_step=0)
    assert [e.reserved.forest_id for e in store.ledger.live.values()] == kept
    assert fill(store, 1)[0].startswith("r0-000002-0")
    store.close()
    assert audit(uri).sound


def test_trained_payload_leaves_the_bucket_when_only_unacknowledged_is_kept(bucket) -> None:
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
    with pytest.raises(BadInput, match=r"was let go once trained; run with queue.retain=all"):
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


def test_a_payload_that_is_not_uploaded_yet_can_be_read_and_one_that_cannot_be_asked_for_is_not_damaged(bucket) -> None:
    name, client, uri = bucket
    store = open_store(uri)
    fids = fill(store, 2)
    assert [wire.from_batch(store.payload(f))[0].forest_id for f in fids] == fids
    store.sync()
    assert [wire.from_batch(store.payload(f))[0].forest_id for f in fids] == fids

    def gone(*_: object) -> None:
        raise OSError("Connection refused")

    store._segments._folder.read = gone
    with pytest.raises(BadInput, match=r"cannot be read \(Connection refused\); see to the store"):
        store.lease(2, 0)
    del store._segments._folder.read
    (key,) = [k for k in keys(client, name) if k.endswith(".arrow")]
    client.delete_object(Bucket=name, Key=key)
    assert store.lease(2, 0) is None and store.ledger.totals["damaged", "forests"] == 2


def test_a_policy_that_would_never_write_and_a_wrong_address_are_refused(bucket) -> None:
    _, _, uri = bucket
    with pytest.raises(BadInput, match="fsync=none would never write"):
        open_store(uri, fsync="none")
    with pytest.raises(BadInput, match="not a path or URI"):
        Folder("nosuch://place")


def test_the_last_to_open_has_the_run_and_the_one_before_writes_no_more(bucket) -> None:
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


def test_a_store_that_takes_no_more_is_one_line_with_the_remedy(bucket) -> None:
    name, client, uri = bucket
    store = open_store(uri)
    fill(store, 1)
    parts = store.pending()[1:]  # behind the look at whose run it is
    for key in [o["Key"] for o in client.list_objects_v2(Bucket=name)["Contents"]]:
        client.delete_object(Bucket=name, Key=key)
    client.delete_bucket(Bucket=name)
    with pytest.raises(BadInput, match=r"arrow: cannot be written \(.*\); see to the store, then resume the run"):
        flush(parts)
