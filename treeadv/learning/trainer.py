"""The trainer, which takes optimizer steps on batches of graded forests."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
import torch.distributed as dist

from treeadv import wire
from treeadv.config import Config
from treeadv.errors import BadForest
from treeadv.forest import Forest, Verdict
from treeadv.learning import sharding, weights
from treeadv.learning.advantage import Array
from treeadv.learning.answers import answer_figures
from treeadv.learning.checkpoint import TrainerState
from treeadv.learning.flops import utilisation
from treeadv.learning.gradient import GradientPass, Update
from treeadv.learning.kept import write_log_probs
from treeadv.learning.loading import load
from treeadv.learning.minibatches import minibatches, trained_in
from treeadv.learning.objective import Objective, Sums, build_objective
from treeadv.learning.optimizer import apply_settings, build_optimizer, learning_rate
from treeadv.learning.report import NonFinite, Phases, StepReport
from treeadv.learning.truncation import treat_truncated
from treeadv.seeds import derive

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Trainer:
    """The trainer of float32 master weights with AdamW. Every rank gets all forests and computes its share of them."""

    def __init__(
        self,
        config: Config,
        model_dir: str,
        *,
        rank: int = 0,
        world: int = 1,
        keep_dir: str | Path = ".",
        base_dir: str | None = None,
    ) -> None:
        """Load the weights of the folder `model_dir`.

        `base_dir` is the folder of the initial weights of the run, if it is another folder. The initial weights are the
        reference of the KL term and the weights under a LoRA adapter. With `world` > 1 the process group must be
        initialised. `keep_dir` receives the batches with an update that is not finite."""
        c = config.learner
        self.config, self.rank, self.world = config, rank, world
        self.source, self.keep_dir = Path(model_dir), Path(keep_dir)
        self.version = 0  # number of optimizer updates of the weights so far
        self.steps = 0  # number of batches that were trained on
        self._nonfinite_in_a_row = 0
        self.limit = c.tokens_per_microbatch
        self.objective: Objective = build_objective(c, config.sampling)
        base = base_dir or model_dir
        mesh = sharding.mesh(c.device, c.replicas) if world > 1 else None
        start = base if c.lora_rank else model_dir
        self.policy = load(start, c.device, _DTYPES[c.dtype], mesh, c.lora_rank, derive(config.run.seed, "lora"))
        if c.checkpoint_activations:
            self.policy.recompute_activations()
        self.reference = load(base, c.device, _DTYPES[c.dtype], mesh).requires_grad_(False) if c.kl else None
        for model in filter(None, (self.policy, self.reference)):
            model.float32_head = c.float32_head
        self._trained = [p for p in self.policy.parameters() if p.requires_grad]
        self.optimizer = build_optimizer(self._trained, c)

    # ---- one step ----------------------------------------------------------------------------------------------------
    def step(self, forests: Sequence[Forest], version: int) -> StepReport:
        """Take the optimizer updates of one batch of graded forests. Each update adds 1 to the version of the weights.

        `version` must be the version of the weights. An update whose loss or gradient is not finite is skipped and
        reported. Raises `NonFinite` after more than `learner.max_nonfinite` such updates in a row. Raises `BadForest`,
        before anything is trained, for a forest that this policy cannot train on.
        """
        if version != self.version:
            raise ValueError(f"step for version {version}: the weights have version {self.version}")
        if not forests:
            raise ValueError("a step needs at least one forest")
        c, clock = self.config.learner, Phases(self.config.learner.device)
        for f in forests:
            self._check_forest(f)
        plan = minibatches(len(forests), c.updates_per_batch, self.config.run.seed, version)
        taken = _UpdateResults()
        with clock("pack"):
            arrived = [self._trained_forest(f) for f in forests]
            gradients = self._gradient_pass()
            updates = [gradients.prepare([arrived[n] for n in members]) for members in plan]
        with clock("log_probs"):
            for update in updates[1:]:  # the first update computes pi_proximal itself: the weights are still the same
                gradients.note_proximal(update)
        for _ in range(c.passes_per_batch):
            for number, update in enumerate(updates):
                if not update.forests:
                    taken.idle += 1
                elif number not in taken.nonfinite:
                    self._update_weights(gradients, update, number, taken, forests, clock)
        report = self._report(forests, plan, updates, taken, version, clock.seconds)
        self.steps += not report.void
        if c.keep_log_probs and not report.void:
            self._keep_log_probs(forests, updates)
        return report

    def gradients(self, forests: Sequence[Forest], clock: Phases) -> Sums:
        """Store the gradient of one update on all forests in the parameters.

        Returns the sums of the loss over all ranks.
        """
        gradients = self._gradient_pass()
        with clock("pack"):
            update = gradients.prepare([self._trained_forest(f) for f in forests])
        self.optimizer.zero_grad()
        return gradients.accumulate(update, clock)

    def log_probs(self, forests: Sequence[Forest]) -> dict[int, Array]:
        """Return log pi [T] of the forests of this rank, by index in `forests`."""
        return self._gradient_pass().log_probs(forests)

    def _gradient_pass(self) -> GradientPass:
        return GradientPass(
            policy=self.policy, reference=self.reference, objective=self.objective, limit=self.limit,
            dtype=_DTYPES[self.config.learner.dtype], rank=self.rank, world=self.world,
            accumulate_sharded=self.config.learner.accumulate == "sharded",
        )  # fmt: skip

    def _trained_forest(self, f: Forest) -> Forest:
        """Return the forest to train on: the judged leaves, after the treatment of truncated leaves.

        The preset may ask for the tree of merged prefixes."""
        treated = self._treated(f)
        treated = treated.judged_part() if treated.judged.any() else treated
        return treated.merge_prefixes() if self.objective.spec.tree == "merged" else treated

    def _treated(self, f: Forest) -> Forest:
        c = self.config.learner
        return treat_truncated(f, c.truncated, self.config.sampling.max_tokens, c.penalty_tokens)

    def _keep_log_probs(self, forests: Sequence[Forest], updates: Sequence[Update]) -> None:
        """Write the log-probs of the tokens of the forests as drawn, under the policy at the arrival of the batch."""
        drawn = {f.forest_id: f for f in forests}
        kept = {}
        for update in updates:
            for n, values in (update.proximal or {}).items():
                treated = self._treated(drawn[update.forests[n].forest_id])
                trained = np.ones(treated.tokens, bool)
                if treated.judged.any():
                    trained = np.repeat(treated.judged_below, treated.lengths)
                log_prob = np.full(treated.tokens, np.nan, np.float32)
                log_prob[trained] = values
                kept[treated.forest_id] = log_prob
        write_log_probs(self.keep_dir, self.steps, self.rank, kept)

    def _check_forest(self, f: Forest) -> None:
        top = max(int(f.token.max()), int(f.prompt.max()))
        if top >= self.policy.vocabulary:
            raise BadForest(
                f.forest_id, f"token {top} is outside of the model's vocabulary of {self.policy.vocabulary}"
            )
        if f.newest_version > self.version:
            raise BadForest(
                f.forest_id, f"drawn by version {f.newest_version}, newer than the learner's {self.version}"
            )
        if not f.graded:
            raise BadForest(f.forest_id, "not graded")
        if not f.judged.any():
            raise BadForest(f.forest_id, "no leaf was judged")

    def _update_weights(
        self,
        gradients: GradientPass,
        update: Update,
        number: int,
        taken: _UpdateResults,
        batch: Sequence[Forest],
        clock: Phases,
    ) -> None:
        """Take one optimizer update, or skip the update if its loss or gradient is not finite."""
        self.optimizer.zero_grad()
        sums = gradients.accumulate(update, clock)
        with clock("optimizer"):
            norm = float(sharding.full(torch.nn.utils.clip_grad_norm_(self._trained, self.config.learner.clip_grad)))
            if not (math.isfinite(sums.loss) and math.isfinite(norm)):
                self._skip_update(
                    "the loss" if not math.isfinite(sums.loss) else "the gradient",
                    batch,
                    self.version - len(taken.sums),
                )
                taken.nonfinite.add(number)
                return
            self._nonfinite_in_a_row = 0
            rate = learning_rate(self.config.learner, self.config.run, self.steps, taken.attempted)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
        self.version += 1
        taken.finite.add(number)
        taken.sums.append(sums)
        taken.norms.append(norm)
        taken.rate = rate

    def _skip_update(self, what: str, batch: Sequence[Forest], version: int) -> None:
        """Write the batch of an update that is not finite to a file.

        Raises `NonFinite` after too many such updates in a row. `version` is the version of the weights when the batch
        arrived."""
        self.optimizer.zero_grad()
        path = self._batch_file(version)
        if self.rank == 0:
            wire.write_file(path, batch, str(self.source))
        self._nonfinite_in_a_row += 1
        if self._nonfinite_in_a_row > self.config.learner.max_nonfinite:
            raise NonFinite(version, what, path)

    def _batch_file(self, version: int) -> Path:
        """Return the file that keeps a batch with an update that is not finite.

        `version` is the version of the weights when the batch arrived."""
        return self.keep_dir / f"nonfinite-version-{version}.arrow"

    def _report(
        self, forests: Sequence[Forest], plan: list[list[int]], updates: list[Update], taken: _UpdateResults,
        version: int, seconds: dict[str, float],
    ) -> StepReport:  # fmt: skip
        total = sum(taken.sums, Sums())
        tokens = total.tokens or 1.0
        return StepReport(
            version=self.version,
            updates=len(taken.sums),
            idle_updates=taken.idle,
            nonfinite_updates=len(taken.nonfinite),
            nonfinite_forests=tuple(
                forests[n].forest_id for i in sorted(taken.nonfinite - taken.finite) for n in plan[i]
            ),
            nonfinite_batch=self._batch_file(version) if taken.nonfinite else None,
            clipped_gradients=sum(norm > self.config.learner.clip_grad for norm in taken.norms),
            forests_without_gradient=len(forests) - sum(len(u.forests) for u in updates),
            loss=fmean(s.loss for s in taken.sums) if taken.sums else 0.0,
            grad_norm=fmean(taken.norms) if taken.norms else 0.0,
            lr=taken.rate,
            clip_ratio=total.clipped / tokens,
            mask_ratio=total.masked / tokens,
            mismatch_kl=total.mismatch_kl if total.tokens else 0.0,
            ess=total.effective_share if total.tokens else 1.0,
            reference_kl=total.kl / tokens,
            staleness=[version - f.oldest_version for f in forests],
            publication_lag=[trained_in(plan, n) for n in range(len(forests))],
            tokens=sum(f.tokens for f in forests),
            expanded_tokens=sum(f.expanded_tokens for f in forests),
            leaves=sum(f.leaves for f in forests),
            reward_mean=float(np.mean(np.concatenate([f.reward[f.judged] for f in forests]))),
            verdicts=dict(Counter(Verdict(v).name.lower() for f in forests for v in f.verdict)),
            entropy_mean=float(np.mean(np.concatenate([f.entropy for f in forests]))),
            zero_variance=float(np.mean([np.ptp(f.reward[f.judged]) == 0 for f in forests])),
            answers=answer_figures(forests),
            seconds=seconds,
            mfu=self._utilisation(updates, taken, seconds),
        )

    def _utilisation(self, updates: list[Update], taken: _UpdateResults, seconds: dict[str, float]) -> float | None:
        """Return the model FLOPs utilisation of forward and backward passes.

        Returns None if the peak of the device is not known or if no pass was computed."""
        trained = [f for u in updates for f in u.forests]
        if not (taken.sums and trained):
            return None
        device_seconds = seconds["forward_backward"] * self.world / self.config.learner.passes_per_batch
        return utilisation(self.policy.model, trained, device_seconds, self.config.learner.device)

    # ---- weights out, checkpoints ------------------------------------------------------------------------------------
    def buckets(self, max_bytes: int, copy: bool = True) -> Iterator[dict[str, torch.Tensor]]:
        """Yield this rank's share of the weights by Hugging Face name, in buckets of at most `max_bytes`.

        The weights have the generators' dtype. Without `copy` the next step may change them. All ranks must run the
        iterator to its end."""
        yield from weights.buckets(self.policy, max_bytes, _DTYPES[self.config.generator.dtype], copy)

    def save(self, folder: str | Path) -> None:
        """Write a checkpoint into `folder`, which must not exist yet. All ranks call this method.

        The folder is also a plain Hugging Face model folder. A crash may leave an incomplete folder."""
        if self.rank == 0:
            Path(folder).mkdir(parents=True)
        if self.world > 1:
            dist.barrier()
        self.write_files(Path(folder))
        if self.world > 1:
            dist.barrier()

    def write_files(self, folder: Path) -> None:
        """Write this rank's files of a checkpoint into an existing folder. Ranks may use different folders."""
        self._state.write(folder, {"version": self.version, "steps": self.steps})

    def restore(self, folder: str | Path) -> None:
        """Load a checkpoint. On a CPU the following steps are bitwise equal to those of the trainer that wrote it."""
        progress = self._state.restore(Path(folder))
        self.version, self.steps = progress["version"], progress["steps"]
        apply_settings(self.optimizer, self.config.learner)

    @property
    def _state(self) -> TrainerState:
        return TrainerState(policy=self.policy, optimizer=self.optimizer, source=self.source)


@dataclass(kw_only=True)
class _UpdateResults:
    """The results of the updates of a step so far.

    `finite` holds the indices of the trained mini-batches. `nonfinite` holds the indices of the skipped mini-batches.
    With several passes an index may be in both."""

    sums: list[Sums] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    finite: set[int] = field(default_factory=set)
    nonfinite: set[int] = field(default_factory=set)
    idle: int = 0
    rate: float = 0.0

    @property
    def attempted(self) -> int:
        return len(self.sums) + len(self.nonfinite) + self.idle
