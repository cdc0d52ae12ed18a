"""Compares two ranks on gloo, which run in separate processes, with one rank."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.learning import tiny
from tests.learning.test_trainer import FORESTS, same, weights_of
from treeadv.learning import packing
from treeadv.learning.report import Phases
from treeadv.learning.trainer import Trainer

ROOT = Path(__file__).parents[2]

# Options for which two ranks agree with one. With norms, residual and angles in bfloat16 the error would be 0.06.
OTHERS = {
    "bfloat16": {"dtype": "bfloat16"},
    "adapter": {"lora_rank": 2},
    "recomputed": {"checkpoint_activations": True},
}
OTHERS |= {"whole gradients": {"accumulate": "whole"}, "replicas": {"replicas": 2}}

# Several updates a batch. The ratio of a leaf path needs a second pass over forests that are cut.
SEVERAL = {"updates_per_batch": 3, "passes_per_batch": 2, "preset": "gspo", "advantage": {"clip": (0.01, 0.01)}}
SEVERAL |= {"correction": "sequence_tis", "adam_eps": 1e-2, "lr": 3e-3, "kl": 0.1}


def several_updates(trainer: Trainer) -> tuple[list, dict[str, np.ndarray]]:
    """Two batches, the second with an update that is not finite: what is reported, and the weights."""
    bad = dataclasses.replace(FORESTS[0], temperature=1e-39)  # its logits are infinite
    reports = [trainer.step(FORESTS, 0), trainer.step([bad, *FORESTS[1:]], 6)]
    told = [(r.version, r.updates, r.nonfinite_forests, r.loss, r.grad_norm, r.clip_ratio, r.ess) for r in reports]
    return told, weights_of(trainer)


TWO_RANKS = """
import json, sys, tempfile
import torch, torch.distributed as dist
from tests.learning import tiny
from tests.learning.test_ranks import OTHERS, SEVERAL, several_updates
from tests.learning.test_trainer import FORESTS, weights_of
from treeadv.learning.report import Phases
from treeadv.learning import sharding
from treeadv.learning.trainer import Trainer
folder, out, store, rank, learner = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), json.loads(sys.argv[5])
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
def gradients(**more):
    t = Trainer(tiny.config(**learner, **more), folder, rank, 2)
    totals = t.gradients(FORESTS, Phases("cpu"))
    trained = {n: p.grad for n, p in t.policy.model.named_parameters() if p.grad is not None}
    return totals.array(), {n: sharding.full(grad) for n, grad in trained.items()}
totals, grads = gradients()
others = {name: gradients(**more)[1] for name, more in OTHERS.items()}
t = Trainer(tiny.config(**learner), folder, rank, 2)
reports = [t.step(FORESTS, v) for v in (0, 1)]
t.save(out + "/step-2")
resumed = Trainer(tiny.config(**learner), out + "/step-2", rank, 2, base_dir=folder)
resumed.restore(out + "/step-2")
a, b = t.step(FORESTS, 2), resumed.step(FORESTS, 2)
whole, again = weights_of(t), weights_of(resumed)
adapter = Trainer(tiny.config(lora_rank=2, kl=0.5, **learner), folder, rank, 2)
adapted = [adapter.step(FORESTS, v).loss for v in (0, 1, 2)]
adapter.save(out + "/adapter-3")
merged = weights_of(adapter)
told, moved = several_updates(Trainer(tiny.config(**{**learner, **SEVERAL}), folder, rank, 2, keep_dir=out))
def united(parts):
    all_parts = [None, None]
    dist.all_gather_object(all_parts, parts)
    assert not all_parts[0].keys() & all_parts[1].keys()  # each rank holds a share of its own
    return all_parts[0] | all_parts[1]
whole, again, merged, moved = united(whole), united(again), united(merged), united(moved)
if rank == 0:
    torch.save({"totals": totals, "grads": grads, "others": others,
                "losses": [r.loss for r in reports], "norms": [r.grad_norm for r in reports],
                "weights": whole, "resumed": again, "third": (a.loss, b.loss),
                "adapted": adapted, "merged": merged, "told": told, "moved": moved}, out + "/result.pt")
dist.destroy_process_group()
"""


def two_ranks(folder: str, out: Path, learner: str = "{}") -> dict:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_RANKS, folder, str(out), str(out / "store"), str(rank), learner], env=environment
        )
        for rank in (0, 1)
    ]
    try:
        assert [r.wait(timeout=280) for r in ranks] == [0, 0]
    finally:
        for r in ranks:
            r.kill()
    return torch.load(out / "result.pt", weights_only=False)


def error(grads: dict[str, torch.Tensor], trainer: Trainer) -> float:
    """Return the largest norm of a difference to the gradients of `trainer`, relative to the largest gradient norm."""
    want = {n: p.grad for n, p in trainer.policy.model.named_parameters() if p.grad is not None}
    assert grads.keys() == want.keys()
    size = max(float(g.norm()) for g in want.values())
    return max(float((grads[n] - g).norm()) for n, g in want.items()) / size


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return tiny.folder(tmp_path_factory.mktemp("model"), "smollm")


def test_two_ranks_equal_one_and_resume_bitwise(folder, tmp_path):
    """The micro-batches are so small that the ranks have different numbers of micro-batches and of cut forests."""
    limit = 9
    two = two_ranks(folder, tmp_path, f'{{"tokens_per_microbatch": {limit}, "lr": 1e-4}}')
    one = Trainer(tiny.config(tokens_per_microbatch=limit, lr=1e-4), folder)
    np.testing.assert_allclose(two["totals"], one.gradients(FORESTS, Phases("cpu")).array(), rtol=1e-5, atol=1e-7)
    assert error(two["grads"], one) <= 1e-6
    for name, more in OTHERS.items():
        other = Trainer(tiny.config(tokens_per_microbatch=limit, lr=1e-4, **more), folder)
        other.gradients(FORESTS, Phases("cpu"))
        assert error(two["others"][name], other) <= 1e-6, name
    reports = [one.step(FORESTS, v) for v in (0, 1, 2)]
    np.testing.assert_allclose(two["losses"], [r.loss for r in reports[:2]], rtol=1e-4)
    np.testing.assert_allclose(two["norms"], [r.grad_norm for r in reports[:2]], rtol=1e-4)
    assert two["third"][0] == two["third"][1] and same(two["weights"], two["resumed"])
    # one rank reads the checkpoint of two, optimizer included
    resharded = Trainer(tiny.config(tokens_per_microbatch=limit, lr=1e-4), folder)
    resharded.restore(tmp_path / "step-2")
    assert resharded.step(FORESTS, 2).loss == pytest.approx(two["third"][0], rel=1e-5)
    learner = {"tokens_per_microbatch": limit, **SEVERAL}
    told, moved = several_updates(Trainer(tiny.config(**learner), folder, keep_dir=tmp_path))
    assert [t[:3] for t in two["told"]] == [t[:3] for t in told] == [(6, 6, ()), (10, 4, ("f0",))]
    np.testing.assert_allclose([t[3:] for t in two["told"]], [t[3:] for t in told], rtol=1e-4)
    assert all(t[5] > 0 for t in told)  # later updates clip
    assert all(np.abs(two["moved"][name] - w).max() < 1e-6 for name, w in moved.items())
    # the same for an adapter with a KL term to the starting model
    adapter = Trainer(tiny.config(tokens_per_microbatch=limit, lr=1e-4, lora_rank=2, kl=0.5), folder)
    np.testing.assert_allclose(two["adapted"], [adapter.step(FORESTS, v).loss for v in (0, 1, 2)], rtol=1e-4)
    adapter.restore(tmp_path / "adapter-3")
    assert same(weights_of(adapter), two["merged"])


@given(st.lists(st.integers(1, 500), min_size=1, max_size=20), st.integers(1, 4))
def test_forests_are_dealt_once_in_even_shares(cost, world):
    share = packing.balance(cost, world)
    assert sorted(f for s in share for f in s) == list(range(len(cost)))
    load = [sum(cost[f] for f in s) for s in share]
    assert max(load) - min(load) <= max(cost)


RUN = """
import shutil
import sys
from pathlib import Path
from tests.learning import tiny
from tests.learning.test_trainer import FORESTS
from treeadv.learning.trainer import Trainer
from treeadv.storage.disk import rename_durably
folder, place, last = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
done = sorted(place.glob("step-*"), key=lambda p: int(p.name[5:]))
t = Trainer(tiny.config(steps=last, schedule="cosine", dtype="bfloat16"), str(done[-1]) if done else folder)
if done:
    t.restore(done[-1])
while t.version < last:
    report = t.step(FORESTS, t.version)
    print(report.version, flush=True)
    scratch = place / f".step-{t.version}"
    shutil.rmtree(scratch, ignore_errors=True)
    t.save(scratch)
    rename_durably(scratch, place / f"step-{t.version}")
print("end", flush=True)
"""


def start(folder: str, place: Path, last: int) -> subprocess.Popen:
    place.mkdir(exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", RUN, folder, str(place), str(last)], env=environment, stdout=subprocess.PIPE, text=True
    )


def test_killed_and_resumed_run_ends_bitwise_as_an_unbroken_one(folder, tmp_path):
    """SIGKILL comes at moments spread over steps and checkpoint writes. The run resumes from the files on the disk."""
    last = 20
    assert start(folder, tmp_path / "unbroken", last).wait(timeout=120) == 0
    kills = 0
    for delay in (0.0, 0.007):
        process = start(folder, tmp_path / "broken", last)
        assert process.stdout is not None
        for _ in range(3):  # it has taken at least three steps: kill it at a later moment
            process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills == 2
    assert start(folder, tmp_path / "broken", last).wait(timeout=120) == 0
    ends = []
    for place in ("unbroken", "broken"):
        trainer = Trainer(tiny.config(), folder)
        trainer.restore(tmp_path / place / f"step-{last}")
        ends.append((weights_of(trainer), trainer.optimizer.state_dict()["state"]))
    assert same(ends[0][0], ends[1][0])
    for a, b in zip(ends[0][1].values(), ends[1][1].values(), strict=True):
        assert all(torch.equal(a[k], b[k]) for k in a)
