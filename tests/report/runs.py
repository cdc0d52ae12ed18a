"""Creates the folder of a finished run. The real store writes the files of the queue; the records and the summary are
synthetic."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from treeadv import config as configuration
from treeadv.config import QueueConfig
from treeadv.forest import Forest
from treeadv.replay.store import ReplayStore
from treeadv.storage.run_folder import RunFolder
from treeadv.wire import to_batch

CONFIG: dict[str, Any] = {
    "task": {"source": "reasoning-gym", "families": [{"name": "chain_sum"}]},
    "run": {"name": "demo"},
}


def record(step: int, **more: Any) -> dict[str, Any]:
    """Return a line of metrics.jsonl with every key."""
    share = step / (step + 10)
    return {
        "step": step, "version": step, "elapsed_s": 12.5 * step, "reward_mean": 0.2 + 0.6 * share,
        "verdicts": {"verified": 3, "wrong": 5},
        "forests": {"ready": 2, "leased": 1, "trained": step},
        "tokens_generated": 500 * step, "tokens_trained": 400 * step,
        "tokens_expanded": 520 * step, "leaves": 8, "sharing": 0.25 - 0.1 * share,
        "answer_tokens": 20.0 + step, "answer_tokens_by_verdict": {"verified": 18.0 + step, "wrong": 22.0 + step},
        "truncated": 0.05, "mixed": 1 - share, "reward_by_family": {"chain_sum": 0.3, "gcd": 0.1 + share},
        "admitted": step + 3, "law_error": 0, "dropped": {"stale": 1}, "dropped_tokens": {"stale": 90},
        "generator_busy_s": 9.0,
        "staleness_mean": 0.8, "staleness_max": 1 + step % 2, "entropy_mean": 1.9 - share, "tau": 1.2 - 0.5 * share,
        "loss": -0.01 * share, "grad_norm": 1.5 + 0.2 * (step % 3), "lr": 2e-5,
        "clip_ratio": 0.01, "mask_ratio": 0.0, "mismatch_kl": 0.0004 * step, "ess": 0.97, "zero_variance": share,
        "decode_tokens_per_s": 80.0 + step, "prefix_reuse": 0.9,
        "seconds": {"wait": 4.0 - share, "forward_backward": 5.0, "optimizer": 0.8, "publish": 0.4}, **more,
    }  # fmt: skip


def make_run(root: Path, forests: Sequence[Forest], records: Sequence[dict[str, Any]]) -> Path:
    """Create a run that trained one of `forests` in each step. A step with None has only a record of metrics."""
    tree = {**CONFIG, "run": {**CONFIG["run"], "root": str(root)}}
    folder, _, lock = RunFolder.create(configuration.parse(tree, "test"), "demo")
    lock.release()
    store = ReplayStore(str(folder.path), QueueConfig(), forests_per_step=1, seed=0, session="test", step=0)
    for step, forest in enumerate(forests, 1):
        ticket = store.reserve("w", "", lambda _draw, id=forest.prompt_id: id)
        assert ticket is not None
        assert store.admit(ticket.forest_id, to_batch([replace(forest, forest_id=ticket.forest_id)])) == "admitted"
        lease = store.lease(1, step - 1)
        assert lease is not None
        store.ack(lease.lease_id, step)
        store.commit(step)
    store.close()
    for r in records:
        folder.record(r)
    return folder.path


def summary(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the summary.json of such a run."""
    last = records[-1]
    return {
        "steps": last["step"], "elapsed_s": last["elapsed_s"], "reward_first_fifth": 0.25, "reward_last_fifth": 0.55,
        **{k: last[k] for k in ("tokens_generated", "tokens_trained", "tokens_expanded")},
        "sharing_trained": 1 - last["tokens_trained"] / last["tokens_expanded"], "prefix_reuse": 0.9,
        "staleness_mean": 0.8,
        "staleness_max": 2, "seconds": {"wait": 60.0, "forward_backward": 75.0},
        "forests": last["forests"], "run": "runs/demo",
    }  # fmt: skip


def write_summary(run: Path, records: Sequence[dict[str, Any]]) -> None:
    (run / "summary.json").write_text(json.dumps(summary(records)))
