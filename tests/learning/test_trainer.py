"""Tests the optimizer step: its update, refusals, checkpoints and published weights."""

from __future__ import annotations

import dataclasses
import json
import pickle
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    MambaConfig,
    MixtralConfig,
)

from tests.learning import tiny
from tests.strategies import build
from treeadv import wire
from treeadv.errors import BadForest, BadInput
from treeadv.learning import attention, loading, packing
from treeadv.learning.report import NonFinite
from treeadv.learning.trainer import Trainer

FORESTS = [
    build([-1, 0, 0, 2, 2, -1], [2, 3, 1, 2, 4, 5], rewards=[1, 0, 1, 0], forest_id="f0"),
    build([-1, 0, 0, -1], [4, 3, 1, 2], rewards=[1, 0, 0], seed=3, temperature=0.7, forest_id="f1"),
    build([-1, -1], [3, 2], rewards=[0, 1], seed=4, forest_id="f2"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return tiny.folder(tmp_path_factory.mktemp("model"), "smollm")


def weights_of(trainer: Trainer) -> dict[str, np.ndarray]:
    return {n: np.asarray(t) for b in trainer.buckets(1 << 20) for n, t in b.items()}


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[n], b[n]) for n in a)


def test_steps_raise_good_leaves_and_lower_bad_ones(folder):
    trainer = Trainer(tiny.config(lr=3e-3), folder)
    f = FORESTS[0]

    def leaf_log_probs() -> np.ndarray:
        logp = trainer.log_probs([f])[0]
        return np.array([sum(logp[f.start[s] : f.start[s + 1]].sum() for s in f.path(int(e))) for e in f.leaf_segment])

    before = leaf_log_probs()
    reports = [trainer.step([f], version) for version in range(5)]
    assert ((leaf_log_probs() - before) * np.where(f.reward > 0, 1, -1) > 0).all()
    assert [r.version for r in reports] == [1, 2, 3, 4, 5]


def test_report_counts_the_trained_tokens(folder):
    trainer = Trainer(tiny.config(), folder)
    report = trainer.step(FORESTS, 0)
    assert report.tokens == sum(f.tokens for f in FORESTS) and report.expanded_tokens == sum(
        f.expanded_tokens for f in FORESTS
    )
    assert report.leaves == 9 and report.reward_mean == pytest.approx(4 / 9) and report.zero_variance == 0
    assert report.staleness == [0, 0, 0] and report.mfu is None
    assert set(report.seconds) == {"pack", "log_probs", "forward_backward", "optimizer"}
    assert 0 < report.ess <= 1 and report.mismatch_kl > 0 and report.grad_norm > 0
    assert trainer.step(FORESTS, 1).staleness == [1, 1, 1]


def test_micro_batches_are_packed_once_in_the_pack_phase(folder, monkeypatch):
    """The reference model and the log-probs of cut forests use the same packing."""
    trainer = Trainer(tiny.config(tokens_per_microbatch=9, kl=0.1), folder)
    pack, calls = packing.pack, []

    def slow(*args):
        calls.append(args)
        time.sleep(0.02)
        return pack(*args)

    monkeypatch.setattr(packing, "pack", slow)
    seconds = trainer.step(FORESTS, 0).seconds
    assert seconds["pack"] > 0.02 * len(calls)
    assert len(calls) > 3


def test_small_micro_batches_take_the_same_step(folder):
    whole, cut = Trainer(tiny.config(), folder), Trainer(tiny.config(tokens_per_microbatch=9), folder)
    a, b = whole.step(FORESTS, 0), cut.step(FORESTS, 0)
    assert (
        len(cut._gradient_pass().prepare(FORESTS).batches) > len(whole._gradient_pass().prepare(FORESTS).batches) == 1
    )
    assert a.loss == pytest.approx(b.loss, rel=1e-5) and a.grad_norm == pytest.approx(b.grad_norm, rel=1e-5)


@pytest.mark.parametrize("learner", [{"checkpoint_activations": True}, {"dtype": "bfloat16"}])
def test_recomputation_and_bfloat16_take_the_same_step(folder, learner):
    exact = Trainer(tiny.config(), folder).step(FORESTS, 0)
    other = Trainer(tiny.config(**learner), folder)
    report = other.step(FORESTS, 0)
    tolerance = 1e-6 if "checkpoint_activations" in learner else 3e-2
    assert report.grad_norm == pytest.approx(exact.grad_norm, rel=tolerance)
    assert all(p.dtype == torch.float32 for p in other.policy.parameters())


def test_recomputation_adds_no_noise_of_the_training_mode(tmp_path, monkeypatch):
    """In training mode Mixtral multiplies the input of its routers by noise."""
    noisy = MixtralConfig(**{**tiny.EXPERTS["mixtral"].to_dict(), "router_jitter_noise": 0.9})
    monkeypatch.setitem(tiny.EXPERTS, "mixtral", noisy)
    folder = tiny.folder(tmp_path, "mixtral")
    plain, recomputing = (Trainer(tiny.config(checkpoint_activations=on), folder) for on in (False, True))
    a, b = plain.step(FORESTS, 0), recomputing.step(FORESTS, 0)
    assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-6) and a.loss == pytest.approx(b.loss, rel=1e-6)


def test_gradients_are_clipped_to_the_configured_norm(folder):
    trainer = Trainer(tiny.config(clip_grad=1e-3), folder)
    report = trainer.step(FORESTS, 0)
    left = torch.nn.utils.get_total_norm([p.grad for p in trainer.policy.parameters()])
    assert report.grad_norm > 1e-3 and float(left) == pytest.approx(1e-3, rel=1e-3)


def test_kl_starts_at_zero_and_limits_the_policy_change(folder):
    free, anchored = Trainer(tiny.config(), folder), Trainer(tiny.config(kl=5.0), folder)
    first = free.step(FORESTS, 0), anchored.step(FORESTS, 0)
    assert first[0].loss == pytest.approx(first[1].loss, abs=1e-6)
    for version in range(1, 6):
        free.step(FORESTS, version)
        anchored.step(FORESTS, version)
    start = load_file(Path(folder) / "model.safetensors")

    def moved(t: Trainer) -> float:
        return sum(float(np.square(w - start[n].numpy()).sum()) for n, w in weights_of(t).items())

    assert moved(anchored) < moved(free)


# ---- refusals --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"token": np.full(17, 99, np.int32)}, "forest f0: token 99 is outside of the model's vocabulary of 32"),
        ({"version": np.full(17, 3, np.int32)}, "forest f0: drawn by version 3, newer than the learner's 0"),
        ({"verdict": np.full(4, -1, np.int8)}, "forest f0: not graded"),
    ],
)
def test_bad_forest_is_refused_and_nothing_is_trained(folder, change, text):
    trainer = Trainer(tiny.config(), folder)
    before = weights_of(trainer)
    with pytest.raises(BadForest, match=text):
        trainer.step([FORESTS[1], dataclasses.replace(FORESTS[0], **change)], 0)
    assert same(before, weights_of(trainer)) and trainer.version == 0


def test_step_for_another_version_is_refused(folder):
    with pytest.raises(ValueError, match="step for version 3: the weights have version 0"):
        Trainer(tiny.config(), folder).step(FORESTS, 3)


@pytest.mark.parametrize("poison", ["loss", "gradient"])
def test_nonfinite_step_changes_nothing_and_keeps_its_batch(folder, tmp_path, poison):
    trainer = Trainer(tiny.config(max_nonfinite=0), folder, keep_dir=tmp_path)
    with torch.no_grad():
        if poison == "loss":
            trainer.policy.model.get_input_embeddings().weight[int(FORESTS[0].prompt[0])] = torch.nan
    hook = None
    if poison == "gradient":
        hook = trainer.policy.model.get_input_embeddings().weight.register_hook(lambda g: g * torch.inf)
    before = weights_of(trainer)
    with pytest.raises(
        NonFinite, match=rf"the {poison} of an update is not finite.*treeadv reproduce RUN --batch"
    ) as e:
        trainer.step(FORESTS, 0)
    assert all(
        np.array_equal(a, b, equal_nan=True) for a, b in zip(before.values(), weights_of(trainer).values(), strict=True)
    )
    assert trainer.version == 0 and not trainer.optimizer.state
    kept, model = wire.read_file(e.value.batch)
    assert model == folder and [f.forest_id for f in kept] == ["f0", "f1", "f2"]
    if hook is not None:
        hook.remove()
        assert trainer.step(kept, 0).version == 1


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (MambaConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1), "MambaForCausalLM"),
    ],
)  # fmt: skip
def test_model_that_takes_no_mask_is_refused_by_name(tmp_path, config, text):
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(BadInput, match=text):
        loading.load(tmp_path)


def test_other_family_that_takes_the_mask_is_accepted(tmp_path):
    config = GPT2Config(vocab_size=32, n_embd=16, n_layer=1, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=1)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    assert loading.load(tmp_path).vocabulary == 32


def test_model_that_ignores_the_mask_is_refused_by_name(folder, monkeypatch):
    """The model attends to all earlier rows, which only the check against a flat pass detects."""
    monkeypatch.setattr("treeadv.learning.attention.sdpa_blocks", lambda packed: None)
    with pytest.raises(BadInput, match="LlamaForCausalLM ignores the tree's mask"):
        loading.load(folder)


@pytest.mark.parametrize(
    "fault", [NonFinite(3, "the loss", Path("nonfinite-version-3.arrow")), BadForest("f0", "not graded")]
)
def test_errors_of_a_step_are_equal_after_pickling(fault):
    again = pickle.loads(pickle.dumps(fault))
    assert type(again) is type(fault) and str(again) == str(fault) and vars(again) == vars(fault)


def test_model_with_other_attention_options_is_refused(tmp_path):
    """The soft cap of the scores is so large that it has no other effect."""
    config = Gemma2Config(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        layer_types=["full_attention"],
        attn_logit_softcapping=50.0,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(BadInput, match=r"Gemma2ForCausalLM has attn_logit_softcapping=50.0, which is not supported"):
        loading.load(tmp_path)


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_model_with_wrong_attention_is_refused(folder, monkeypatch, compute):
    """The flat passes use the model's own attention. With the wrong attention they would agree with the packed pass."""

    def sharper(*args, scaling, **how):
        return attention._tree_attention(*args, scaling=2 * scaling, **how)

    monkeypatch.setitem(AttentionInterface._global_mapping, attention.NAME, sharper)
    with pytest.raises(BadInput, match="LlamaForCausalLM ignores the tree's mask"):
        loading.load(folder, compute=compute)


# ---- weights out and checkpoints -------------------------------------------------------------------------------------
def test_buckets_hold_every_weight_once_within_the_size(folder):
    trainer = Trainer(tiny.config(), folder)
    buckets = list(trainer.buckets(4000))
    assert len(buckets) > 3
    assert all(len(b) == 1 or sum(t.nbytes for t in b.values()) <= 4000 for b in buckets)
    names = [n for b in buckets for n in b]
    assert sorted(names) == sorted(load_file(Path(folder) / "model.safetensors")) and "lm_head.weight" not in names


def test_buckets_do_not_change_when_the_next_step_is_taken(folder):
    trainer = Trainer(tiny.config(), folder)
    kept = weights_of(trainer)
    copies = {n: w.copy() for n, w in kept.items()}
    trainer.step(FORESTS, 0)
    assert same(kept, copies) and not same(kept, weights_of(trainer))


def test_buckets_come_in_the_generators_dtype(folder):
    c = tiny.config()
    c = c.model_copy(update={"generator": c.generator.model_copy(update={"dtype": "bfloat16"})})
    assert all(t.dtype == torch.bfloat16 for b in Trainer(c, folder).buckets(1 << 20) for t in b.values())


@pytest.mark.parametrize(
    "learner", [{}, {"dtype": "bfloat16"}, {"lora_rank": 2}, {"schedule": "cosine", "warmup_steps": 2, "kl": 0.1}]
)
def test_resumed_run_equals_an_uninterrupted_one_bitwise(folder, tmp_path, learner):
    config = tiny.config(**learner)
    unbroken = Trainer(config, folder)
    for version in range(2):
        unbroken.step(FORESTS, version)
    unbroken.save(tmp_path / "step-2")
    reports = [unbroken.step(FORESTS, version) for version in (2, 3)]
    resumed = Trainer(config, str(tmp_path / "step-2"), base_dir=folder)
    resumed.restore(tmp_path / "step-2")
    again = [resumed.step(FORESTS, version) for version in (2, 3)]
    assert [(r.loss, r.grad_norm, r.lr) for r in reports] == [(r.loss, r.grad_norm, r.lr) for r in again]
    assert same(weights_of(unbroken), weights_of(resumed))


@pytest.mark.parametrize("learner", [{}, {"lora_rank": 2}])
def test_checkpoint_is_a_plain_folder_that_transformers_reads(folder, tmp_path, learner):
    trainer = Trainer(tiny.config(**learner), folder)
    trainer.step(FORESTS, 0)
    trainer.save(tmp_path / "step-1")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "step-1")
    read = dict(model.named_parameters())
    out = weights_of(trainer)
    assert read.keys() == out.keys() and all(np.array_equal(out[n], p.detach().numpy()) for n, p in read.items())
    assert not same(out, {n: t.numpy() for n, t in load_file(Path(folder) / "model.safetensors").items()})
    assert (tmp_path / "step-1" / "tokenizer.json").is_file() and not list(tmp_path.glob(".*"))
    ids = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        np.testing.assert_allclose(model(ids).logits, trainer.policy.model(input_ids=ids).logits, atol=1e-5)


def test_lora_trains_only_the_adapter_and_publishes_it_merged(folder):
    trainer = Trainer(tiny.config(lora_rank=2, lr=1e-2), folder)
    start = load_file(Path(folder) / "model.safetensors")
    assert same(weights_of(trainer), {n: t.numpy() for n, t in start.items()})
    for version in range(2):
        trainer.step(FORESTS, version)
    changed = {n for n, w in weights_of(trainer).items() if not np.array_equal(w, start[n].numpy())}
    assert changed == {n for n in start if "_proj" in n}


def test_adapter_depends_only_on_the_seed_of_the_run(folder):
    def drawn(seed: int) -> torch.Tensor:
        c = tiny.config(lora_rank=2)
        trainer = Trainer(c.model_copy(update={"run": c.run.model_copy(update={"seed": seed})}), folder)
        return torch.cat([p.flatten() for n, p in trainer.policy.named_parameters() if "lora_A" in n])

    before = torch.get_rng_state()
    first = drawn(1)
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(1)
    assert torch.equal(drawn(1), first) and not torch.equal(drawn(2), first)


def test_large_models_are_written_in_shards_with_an_index(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("treeadv.learning.weights.FILE_BYTES", 4000)
    trainer = Trainer(tiny.config(), folder)
    trainer.save(tmp_path / "step-1")
    index = json.loads((tmp_path / "step-1" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 3
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "step-1")
    out = weights_of(trainer)
    assert all(np.array_equal(out[n], p.detach().numpy()) for n, p in model.named_parameters())
    Trainer(tiny.config(), folder).restore(tmp_path / "step-1")


def test_checkpoint_of_another_model_is_refused(folder, tmp_path):
    other = Trainer(tiny.config(), tiny.folder(tmp_path, "llama"))
    other.save(tmp_path / "step-0")
    with pytest.raises(BadInput, match="resume with the model of the run"):
        Trainer(tiny.config(), folder).restore(tmp_path / "step-0")
    with pytest.raises(BadInput, match="not a checkpoint of treeadv"):
        other.restore(tmp_path)


# ---- checkpoints of strangers ----------------------------------------------------------------------------------------
class _Payload:
    """An object whose unpickling creates a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return open, (str(self.mark), "w")


@pytest.fixture
def saved(folder, tmp_path):
    trainer = Trainer(tiny.config(), folder)
    trainer.step(FORESTS, 0)
    trainer.save(tmp_path / "step-1")
    return tmp_path / "step-1"


def test_checkpoint_has_files_of_safe_formats_only(saved):
    kinds = {p.suffix for p in saved.rglob("*") if p.is_file()}
    assert kinds <= {".safetensors", ".json", ".jinja", ".txt"}
    assert not any(p.name.startswith(".") for p in saved.rglob("*"))


def test_restoring_unpickles_nothing(saved, folder, monkeypatch):
    def refuse(*_args, **_options):
        raise AssertionError("something was unpickled")

    for name in ("load", "loads", "Unpickler", "_Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    Trainer(tiny.config(), folder).restore(saved)


@pytest.mark.parametrize("name", ["rng.pt", ".metadata", "tensors/.metadata"])
def test_checkpoint_of_an_earlier_release_runs_no_code(saved, folder, tmp_path, name):
    mark = tmp_path / "owned"
    (saved / "trainer" / name).write_bytes(pickle.dumps(_Payload(mark)))
    with pytest.raises(BadInput, match="a checkpoint of an earlier release, in a format that can run code") as e:
        Trainer(tiny.config(), folder).restore(saved)
    assert not mark.exists() and "\n" not in str(e.value)


SHARD = "trainer/tensors/shard-00001-model-00001-of-00001.safetensors"


@pytest.mark.parametrize(
    "name", ["trainer/random.safetensors", "trainer/progress.json", SHARD, "model-00001.safetensors"]
)
def test_pickle_under_the_name_of_a_safe_file_runs_no_code(saved, folder, tmp_path, name):
    mark = tmp_path / "owned"
    assert (saved / name).is_file()
    (saved / name).write_bytes(pickle.dumps(_Payload(mark)))
    with pytest.raises(BadInput) as e:
        Trainer(tiny.config(), folder).restore(saved)
    assert not mark.exists() and "\n" not in str(e.value)


@pytest.mark.parametrize("content", ["[]", "{}", '{"version": "x", "steps": 1}', "[" * 100_000])
def test_progress_without_its_counters_is_refused(saved, folder, content):
    (saved / "trainer/progress.json").write_text(content)
    with pytest.raises(BadInput, match=r"progress\.json: not the progress of a trainer"):
        Trainer(tiny.config(), folder).restore(saved)


def test_optimizer_state_of_other_shapes_is_refused(saved, folder):
    path = next((saved / "trainer/tensors").iterdir())
    tensors = load_file(path)
    save_file({n: torch.zeros(3) for n in tensors}, path)
    with pytest.raises(BadInput, match="cannot be read"):
        Trainer(tiny.config(), folder).restore(saved)
