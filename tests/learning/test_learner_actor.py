"""Tests the class of the learner role: forests and weights by reference, checkpoints and metrics."""

from __future__ import annotations

import dataclasses
import pickle
import urllib.error
import urllib.request

import numpy as np
import pytest
import ray
import torch
from prometheus_client.parser import text_string_to_metric_families

from actors.driver.handles import actor_class
from actors.learner import Learner
from actors.weight_bucket import WeightBucket
from tests.learning import tiny
from tests.learning.test_trainer import FORESTS, weights_of
from treeadv import wire
from treeadv.config import RunConfig
from treeadv.errors import BadForest
from treeadv.learning.report import NonFinite
from treeadv.metrics import of_role


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def learner(tmp_path):
    model = tiny.folder(tmp_path, "smollm")
    out = Learner(
        tiny.config(model=model, threads=1, correction="bypass", max_nonfinite=0), str(tmp_path / "run"), 0, 1
    )
    out.join(out.rendezvous())
    yield out
    out.close()


def batches(forests) -> tuple[list, list]:
    """Return the forests in batches of two, last row first, and their rows in the order of `forests`."""
    pairs = [forests[i : i + 2] for i in range(0, len(forests), 2)]
    rows = [(n, len(pair) - 1 - i) for n, pair in enumerate(pairs) for i in range(len(pair))]
    return [ray.put(wire.to_batch(pair[::-1])) for pair in pairs], rows


def poison(learner: Learner) -> None:
    """Set the embedding to NaN, so that every log-prob of the model is NaN."""
    with torch.no_grad():
        learner.trainer.policy.model.get_input_embeddings().weight.fill_(torch.nan)


def metrics(learner: Learner) -> dict[str, float]:
    with urllib.request.urlopen(f"http://{learner.address()}/metrics") as reply:
        families = text_string_to_metric_families(reply.read().decode())
        return {
            s.name + "".join(f" {v}" for v in s.labels.values()): s.value for family in families for s in family.samples
        }


def test_step_sets_every_metric_of_the_table(learner):
    report = learner.step(*batches(FORESTS), 0)
    learner.checkpoint(1, session="")
    assert report.version == 1 and report.tokens == sum(f.tokens for f in FORESTS)
    shown = metrics(learner)
    assert shown["treeadv_trained_tokens_total"] == report.tokens
    assert shown["treeadv_trained_expanded_tokens_total"] == report.expanded_tokens
    assert shown["treeadv_trained_leaves_total"] == 9
    assert shown["treeadv_loss"] == report.loss and shown["treeadv_grad_norm"] == report.grad_norm
    assert shown["treeadv_learning_rate"] == report.lr and shown["treeadv_mismatch_kl_nats"] == report.mismatch_kl
    assert (
        shown["treeadv_effective_sample_ratio"] == report.ess and shown["treeadv_clip_ratio"] == report.clip_ratio > 0
    )
    assert shown["treeadv_staleness_versions_count"] == 3 and shown["treeadv_checkpoint_seconds_count"] == 1
    assert shown["treeadv_learner_tokens_per_second"] > 0 and shown["treeadv_mask_ratio"] == 0
    assert shown["treeadv_learner_phase_seconds_count forward_backward"] == 1
    assert all(
        any(name.startswith(m.name.removesuffix("_total")) for name in shown)
        for m in of_role("learner")
        if not m.labels
    )


def test_forests_are_read_without_a_copy(learner, monkeypatch):
    seen = []
    step = learner.trainer.step
    monkeypatch.setattr(
        learner.trainer, "step", lambda forests, version: seen.extend(forests) or step(forests, version)
    )
    learner.step(*batches(FORESTS), 0)
    assert [f.forest_id for f in seen] == ["f0", "f1", "f2"]
    assert not any(f.token.flags.owndata or f.token.flags.writeable for f in seen)


def test_published_buckets_are_the_weights_without_a_copy(learner):
    buckets = [ray.get(ref) for ref in learner.publish()[0]]
    published = {n: w for bucket in buckets for n, w in bucket.tensors().items()}
    want = weights_of(learner.trainer)
    assert published.keys() == want.keys() and all(np.array_equal(published[n], want[n]) for n in want)
    assert not any(a.flags.owndata or a.flags.writeable for bucket in buckets for a in bucket.arrays.values())


def test_published_weights_do_not_change_in_the_next_step(learner):
    refs, _ = learner.publish()
    before = weights_of(learner.trainer)
    learner.step(*batches(FORESTS), 0)
    published = {n: w for ref in refs for n, w in ray.get(ref).tensors().items()}
    assert all(np.array_equal(published[n], before[n]) for n in before)
    assert not all(np.array_equal(published[n], w) for n, w in weights_of(learner.trainer).items())


def test_bucket_keeps_values_dtypes_and_shapes():
    values = {
        "a": torch.randn(3, 5).to(torch.bfloat16),
        "b": torch.randn(2, 2),
        "c": torch.tensor(7),
        "d": torch.tensor([float("nan"), float("inf"), -0.0]).to(torch.bfloat16),
        "e": torch.arange(4, dtype=torch.int16),
        "f": torch.zeros(0, 3, dtype=torch.bfloat16),
    }
    bucket = WeightBucket.of(values)
    assert bucket.size == sum(t.nbytes for t in values.values())
    for found in (bucket, ray.get(ray.put(bucket)), pickle.loads(pickle.dumps(bucket))):
        tensors = found.tensors()
        assert tensors.keys() == values.keys()
        for name, t in values.items():
            assert tensors[name].dtype == t.dtype and tensors[name].shape == t.shape
            torch.testing.assert_close(tensors[name], t, rtol=0, atol=0, equal_nan=True)


def test_tensors_of_a_bucket_give_no_warning(recwarn):
    ray.get(ray.put(WeightBucket.of({"a": torch.ones(3), "b": torch.ones(3).to(torch.bfloat16)}))).tensors()
    assert not recwarn.list


def test_bfloat16_is_sent_as_one_buffer_for_each_tensor():
    """A torch tensor would be pickled into the message instead, which copies it several times."""
    buffers: list[pickle.PickleBuffer] = []
    bucket = WeightBucket.of({str(i): torch.ones(1000, dtype=torch.bfloat16) for i in range(3)})
    message = pickle.dumps(bucket, protocol=5, buffer_callback=buffers.append)
    assert [b.raw().nbytes for b in buffers] == [2000] * 3 and len(message) < 2000


def test_failed_save_leaves_no_checkpoint(learner, tmp_path, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr("torch.get_rng_state", lambda: lambda: None)  # not a tensor
        with pytest.raises(ValueError, match=r"expected torch\.Tensor"):
            learner.checkpoint(1, session="")
    assert not (tmp_path / "run" / "checkpoints" / "step-1").exists()
    learner.checkpoint(1, session="")
    learner.folder.store.seal(1, session="", keep=1)
    learner.restore(1)


def test_only_the_newest_checkpoints_are_kept(learner, tmp_path):
    for step in (1, 2, 3):
        learner.step(*batches(FORESTS), step - 1)
        learner.checkpoint(step, session="")
        learner.folder.store.seal(step, session="", keep=2)
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == ["step-2", "step-3"]
    learner.restore(2)
    assert learner.trainer.version == 2


def test_nonfinite_step_is_counted_and_fails_health(learner, tmp_path):
    poison(learner)
    with pytest.raises(NonFinite, match="The weights are unchanged"):
        learner.step(*batches(FORESTS), 0)
    assert (tmp_path / "run" / "nonfinite-version-0.arrow").is_file()
    assert metrics(learner)["treeadv_nonfinite_updates_total"] == 1
    with pytest.raises(urllib.error.HTTPError) as e:
        urllib.request.urlopen(f"http://{learner.address()}/healthz")
    assert e.value.code == 503 and b"is not finite" in e.value.read()


def test_step_errors_keep_their_type_through_ray(tmp_path):
    """The error keeps its text. The error of a step that is not finite also keeps the path of the stored batch."""
    config = tiny.config(model=tiny.folder(tmp_path, "smollm"), threads=1, lr=1e30, max_nonfinite=0)  # weights overflow
    actor = actor_class(Learner).remote(config, str(tmp_path), 0, 1)
    ray.get(actor.join.remote(""))
    ray.get(actor.step.remote(*batches(FORESTS), 0))
    bad = dataclasses.replace(FORESTS[0], verdict=np.full(4, -1, np.int8))
    for forest, kind in ((bad, BadForest), (FORESTS[0], NonFinite)):
        with pytest.raises(ray.exceptions.RayTaskError) as e:
            ray.get(actor.step.remote(*batches([forest]), 1))
        assert isinstance(e.value, kind) and type(e.value.cause) is kind
        if kind is NonFinite:
            assert e.value.cause.batch.is_file() and "treeadv reproduce RUN --batch" in str(e.value.cause)
        else:
            assert str(e.value.cause) == "forest f0: not graded"


def test_learner_with_a_store_starts_on_another_disk(tmp_path):
    model = tiny.folder(tmp_path, "smollm")
    config = tiny.config(model=model, threads=1, max_nonfinite=0)
    config = config.model_copy(
        update={"run": RunConfig(storage=f"file://{tmp_path}/store", name="one", keep_checkpoints=1)}
    )
    before, after = (Learner(config, str(tmp_path / disk / "one"), 0, 1) for disk in ("before", "after"))
    for learner in (before, after):
        learner.join("")
    for step in (1, 2):
        before.step(*batches(FORESTS), step - 1)
        before.checkpoint(step, "000001-test")
        before.folder.store.seal(step, "000001-test", keep=1)
    assert before.folder.store.next_session().startswith("000002-")
    after.restore(2)
    assert after.trainer.version == 2
    assert before.step(*batches(FORESTS), 2).loss == after.step(*batches(FORESTS), 2).loss
    poison(after)
    with pytest.raises(NonFinite):
        after.step(*batches(FORESTS), 3)
    stored = tmp_path / "store" / "one"
    assert sorted(p.name for p in stored.iterdir()) == ["checkpoints", "nonfinite-version-3.arrow"]
    assert sorted(p.name for p in (stored / "checkpoints").iterdir()) == [
        "step-2-000001-test",
        "step-2-000001-test.json",
    ]
    for learner in (before, after):
        learner.close()


def test_learner_that_has_not_joined_is_refused(tmp_path):
    alone = Learner(tiny.config(), str(tmp_path), 0, 1)
    with pytest.raises(RuntimeError, match="has to join"):
        alone.publish()
    alone.close()
