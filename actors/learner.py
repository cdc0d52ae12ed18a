"""The learner role: one rank of the trainer. The role is a plain class; the driver creates Ray actors from it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import ray
import torch
import torch.distributed as dist
from ray import ObjectRef

from actors.heartbeat import Heartbeat
from actors.weight_bucket import WeightBucket
from treeadv import wire
from treeadv.config import Config
from treeadv.data.model_folder import resolve
from treeadv.errors import BadInput
from treeadv.learning.report import NonFinite, StepReport
from treeadv.learning.trainer import Trainer
from treeadv.metrics import Exporter
from treeadv.storage.run_folder import RunFolder

BUCKET_BYTES = 256 << 20  # largest size of weights that are sent as one object


class Learner(Heartbeat):
    """One rank of the trainer.

    The driver calls `rendezvous` on rank 0. It then calls `join` on all ranks, and `restore` if the run resumes. During
    training it calls `step`, `publish` and `checkpoint` on all ranks."""

    def __init__(self, config: Config, run_dir: str, rank: int, world: int, port: int = 0) -> None:
        """Open the folder of the run and serve /metrics and /healthz at `port` (0: any free port)."""
        torch.set_num_threads(config.learner.threads or os.cpu_count() or 1)
        self.config, self.rank, self.world = config, rank, world
        self.folder = RunFolder.of(Path(run_dir), config)
        self.folder.path.mkdir(parents=True, exist_ok=True)  # with run.storage only the driver's machine has the folder
        self._trainer: Trainer | None = None
        self._store: dist.TCPStore | None = None
        self._fault: str | None = None
        self._exporter = Exporter("learner", lambda: self._fault)
        self._address = self._exporter.serve(config.metrics.host, port)

    @ray.method
    def address(self) -> str:
        """Return host:port of /metrics."""
        return self._address

    @ray.method
    def rendezvous(self) -> str:
        """Open the store for the rendezvous of the ranks and return its host:port. The driver calls this method on rank
        0 only."""
        host = ray.util.get_node_ip_address() if ray.is_initialized() else socket.gethostbyname(socket.gethostname())
        self._store = dist.TCPStore(host, 0, self.world, is_master=True, wait_for_workers=False)
        return f"{host}:{self._store.port}"

    @ray.method
    def join(self, address: str) -> None:
        """Join the process group of all ranks and load the model."""
        if self.config.learner.device == "cuda" and not torch.cuda.is_available():
            raise BadInput(
                "learner.device=cuda: torch finds no CUDA device where the learner runs; set learner.gpus, or"
                " learner.device=cpu"
            )
        if self.world > 1:
            host, _, port = address.rpartition(":")
            store = self._store or dist.TCPStore(host, int(port), self.world, is_master=False)
            backend = "nccl" if self.config.learner.device == "cuda" else "gloo"
            dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.world)
        base = resolve(self.config.model.path, self.config.model.cache)
        self._trainer = Trainer(self.config, str(base), rank=self.rank, world=self.world, keep_dir=self.folder.path)

    @property
    def trainer(self) -> Trainer:
        if self._trainer is None:
            raise RuntimeError("a learner has to join before it can train")
        return self._trainer

    @ray.method
    def step(
        self, batches: list[ObjectRef[pa.RecordBatch]], rows: Sequence[tuple[int, int]], version: int
    ) -> StepReport:
        """Take the optimizer updates of one step.

        `batches` are references to record batches. `rows` names the forests of the step in their order, each by the
        number of its batch and its row in this batch."""
        forests = wire.rows(ray.get(batches), rows)
        try:
            report = self.trainer.step(forests, version)
        except NonFinite as fault:
            self._fault = str(fault)
            self._exporter.add("treeadv_nonfinite_updates_total")
            self._keep(fault.batch)
            raise
        if report.nonfinite_batch:
            self._keep(report.nonfinite_batch)
        self._export(report)
        return report

    @ray.method
    def publish(self) -> tuple[list[ObjectRef[WeightBucket]], int]:
        """Gather the weights and put this rank's share into the object store.

        Returns references to the share and its size in bytes."""
        refs: list[ObjectRef[WeightBucket]] = []
        size = 0
        for weights in self.trainer.buckets(BUCKET_BYTES, copy=False):  # put copies them
            bucket = WeightBucket.of(weights)
            refs.append(ray.put(bucket))
            size += bucket.size
        return refs, size

    @ray.method
    def checkpoint(self, step: int, session: str) -> None:
        """Write this rank's files of the checkpoint of `step`. The driver calls this method on all ranks.

        The checkpoint is valid once the driver, which started `session`, has sealed it."""
        began = time.perf_counter()
        self.folder.store.write_checkpoint(step, session, self.trainer.write_files)
        self._exporter.observe("treeadv_checkpoint_seconds", time.perf_counter() - began)

    @ray.method
    def restore(self, step: int) -> int:
        """Load the checkpoint of `step`. Returns the version of its weights."""
        with self.folder.open_checkpoint(step) as folder:
            self.trainer.restore(folder)
        return self.trainer.version

    @ray.method
    def close(self) -> None:
        self._exporter.close()
        if dist.is_initialized():
            dist.destroy_process_group()

    def _keep(self, batch: Path) -> None:
        """Copy a batch with a non-finite update to the store of the run. The local disk may be lost with the pod."""
        if self.rank == 0:
            self.folder.store.keep(batch)

    def _export(self, report: StepReport) -> None:
        e = self._exporter
        for phase, seconds in report.seconds.items():
            e.observe("treeadv_learner_phase_seconds", seconds, phase=phase)
        if self.rank:
            return  # the values below cover all ranks, so only rank 0 exports them
        e.add("treeadv_trained_tokens_total", report.tokens)
        e.add("treeadv_trained_expanded_tokens_total", report.expanded_tokens)
        e.add("treeadv_trained_leaves_total", report.leaves)
        e.add("treeadv_updates_total", report.updates)
        e.add("treeadv_nonfinite_updates_total", report.nonfinite_updates)
        e.add("treeadv_idle_updates_total", report.idle_updates)
        e.add("treeadv_clipped_gradients_total", report.clipped_gradients)
        e.add("treeadv_forests_without_gradient_total", report.forests_without_gradient)
        for updates in report.publication_lag:
            e.observe("treeadv_publication_lag_updates", updates)
        for versions in report.staleness:
            e.observe("treeadv_staleness_versions", versions)
        gauges = {
            "loss": report.loss,
            "grad_norm": report.grad_norm,
            "learning_rate": report.lr,
            "clip_ratio": report.clip_ratio,
            "mask_ratio": report.mask_ratio,
            "mismatch_kl_nats": report.mismatch_kl,
            "effective_sample_ratio": report.ess,
            "learner_tokens_per_second": report.tokens / sum(report.seconds.values()),
            "answer_tokens": report.answers.answer_tokens,
            "truncated_ratio": report.answers.truncated,
            "mixed_ratio": report.answers.mixed,
            "zero_variance_ratio": report.zero_variance,
        }
        if report.mfu is not None:
            gauges["learner_mfu_ratio"] = report.mfu
        for name, value in gauges.items():
            e.set(f"treeadv_{name}", value)
        for verdict, leaves in report.verdicts.items():
            e.add("treeadv_trained_verdicts_total", leaves, verdict=verdict)
        for verdict, tokens in report.answers.answer_tokens_by_verdict.items():
            e.set("treeadv_verdict_answer_tokens", tokens, verdict=verdict)
        for family, reward in report.answers.reward_by_family.items():
            e.set("treeadv_family_reward_mean", reward, family=family)
