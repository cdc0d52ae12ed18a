"""The optimizer step: forests in, weights one version newer out (docs/method.md)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from treeadv import wire
from treeadv.config import Config
from treeadv.errors import BadForest
from treeadv.forest import Forest, Verdict
from treeadv.learning import packing, sharding, weights
from treeadv.learning.advantage import Array
from treeadv.learning.checkpoint import Checkpointed
from treeadv.learning.correction import Mismatch
from treeadv.learning.flops import utilisation
from treeadv.learning.loading import load
from treeadv.learning.objective import Outcome, build_objective, evaluate, scales
from treeadv.learning.packing import Packed, Piece
from treeadv.learning.policy import Policy
from treeadv.learning.report import NonFinite, Phases, StepReport
from treeadv.seeds import derive

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Trainer:
    """Master weights in float32, AdamW, one optimizer step a call. Every rank is given all forests and trains its share of them."""

    def __init__(
        self, config: Config, model_dir: str, rank: int = 0, world: int = 1, keep_dir: str | Path = ".", base_dir: str | None = None
    ) -> None:
        """`model_dir` holds the weights to start from; `base_dir` those that the run began with, where they are others: the
        reference of the KL term and the weights under a LoRA adapter. With `world` > 1 the process group must be initialised.
        A batch that gives no finite step is kept in `keep_dir`."""
        c = config.learner
        self.config, self.rank, self.world = config, rank, world
        self.source, self.keep_dir = Path(model_dir), Path(keep_dir)
        self.version = 0  # of the weights held
        self.limit = c.tokens_per_microbatch
        self.objective = build_objective(c, config.sampling)
        base = base_dir or model_dir
        mesh = sharding.mesh(c.device, c.replicas) if world > 1 else None
        start = base if c.lora_rank else model_dir
        self.policy = load(start, c.device, _DTYPES[c.dtype], mesh, c.lora_rank, derive(config.run.seed, "lora"))
        if c.checkpoint_activations:
            self.policy.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.reference = load(base, c.device, _DTYPES[c.dtype], mesh).requires_grad_(False) if c.kl else None
        self._trained = [p for p in self.policy.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self._trained, lr=c.lr, betas=c.betas, weight_decay=c.weight_decay, fused=True)

    # ---- one step ------------------------------------------------------------------------------------------------------------
    def step(self, forests: Sequence[Forest], version: int) -> StepReport:
        """Train on graded forests with the weights of `version`; they become version + 1.

        `BadForest` refuses a forest that does not fit (nothing is trained then), `NonFinite` stops before the optimizer.
        """
        if version != self.version:
            raise ValueError(f"a step for version {version} was asked of weights of version {self.version}")
        if not forests:
            raise ValueError("a step needs at least one forest")
        clock = Phases(self.config.learner.device)
        totals = self.gradients(forests, clock)
        with clock("optimizer"):
            norm = self._apply(float(totals[0]), forests)
        return self._report(forests, totals, norm, clock.seconds)

    def gradients(self, forests: Sequence[Forest], clock: Phases) -> Array:
        """Leave the gradient of the batch's loss in the parameters; returns [7] loss, clipped and masked tokens, and the four sums of
        `Mismatch`, over all ranks."""
        for f in forests:
            self._refuse(f)
        with clock("pack"):
            batches, cut = self._pack(forests)
            scale = scales(forests, self.objective)
        outcomes: dict[int, Outcome] = {}
        self.optimizer.zero_grad()
        self.policy.train(self.config.learner.checkpoint_activations)  # transformers recomputes activations in this mode only
        with clock("log_probs"):
            reference = self._log_probs(self.reference, forests, batches) if self.reference else {}
            for n, logp in self._log_probs(self.policy, forests, cut).items():
                outcomes[n] = evaluate(forests[n], self.objective, scale[n], logp, reference.get(n))
        with clock("forward_backward"):
            for packed in batches:
                if self.world > 1:
                    last = packed is batches[-1] or self.config.learner.accumulate == "sharded"
                    sharding.reduce_gradients(self.policy, last)
                self._backward(forests, packed, scale, outcomes, reference)
        return self._total(outcomes)

    def _refuse(self, f: Forest) -> None:
        top = max(int(f.token.max()), int(f.prompt.max()))
        if top >= self.policy.vocabulary:
            raise BadForest(f.forest_id, f"token {top} is outside of the model's vocabulary of {self.policy.vocabulary}")
        if f.newest_version > self.version:
            raise BadForest(f.forest_id, f"drawn by version {f.newest_version}, newer than the learner's {self.version}")
        if not f.graded:
            raise BadForest(f.forest_id, "it is not graded")
        if not f.judged.any():
            raise BadForest(f.forest_id, "no leaf was judged")

    def _pack(self, forests: Sequence[Forest]) -> tuple[list[Packed], list[Packed]]:
        """This rank's micro-batches, and those of them that hold forests cut in several pieces (their log-probs are needed first).

        All ranks run as many, since sharded layers are gathered together: one that has fewer trains nothing in the rest.
        """
        parts = packing.pieces(forests, self.limit)
        cost = [sum(p.tokens for p in parts if p.forest == n) for n in range(len(forests))]
        mine: list[list[list[Piece]]] = []
        cuts: list[list[list[Piece]]] = []
        for share in packing.balance(cost, self.world):
            own = [p for p in parts if p.forest in set(share)]
            mine.append(packing.group(own, self.limit))
            cuts.append(packing.group([p for p in own if not p.whole(forests)], self.limit))
        return self._filled(forests, mine), self._filled(forests, cuts)

    def _filled(self, forests: Sequence[Forest], batches: list[list[list[Piece]]]) -> list[Packed]:
        own = [packing.pack(forests, batch) for batch in batches[self.rank]]
        return own + [packing.filler(forests) for _ in range(max(map(len, batches)) - len(own))]

    def _autocast(self) -> torch.autocast:
        c = self.config.learner
        return torch.autocast(c.device, torch.bfloat16, enabled=c.dtype == "bfloat16")

    @torch.no_grad()
    def _log_probs(self, model: Policy, forests: Sequence[Forest], batches: list[Packed]) -> dict[int, Array]:
        """log pi [T] of every forest in `batches`, without gradient."""
        out: dict[int, Array] = {}
        for packed in batches:
            with self._autocast():
                logp = model(packed).double().cpu().numpy()
            for p, (a, b) in zip(packed.pieces, packed.span, strict=True):
                f = forests[p.forest]
                out.setdefault(p.forest, np.empty(f.tokens))[f.start[p.first] : f.start[p.last]] = logp[a:b]
        sharding.reshard(model)
        return out

    def _backward(
        self, forests: Sequence[Forest], packed: Packed, scale: list[float], outcomes: dict[int, Outcome], reference: dict[int, Array]
    ) -> None:
        """Add the gradient of one micro-batch: the slope of the loss by each log-prob, carried back through the model."""
        with self._autocast():
            logp = self.policy(packed)
        known = logp.detach().double().cpu().numpy()
        slope = np.zeros(len(known))
        for p, (a, b) in zip(packed.pieces, packed.span, strict=True):
            f = forests[p.forest]
            if p.whole(forests):
                outcomes[p.forest] = evaluate(f, self.objective, scale[p.forest], known[a:b], reference.get(p.forest))
            slope[a:b] = outcomes[p.forest].slope[f.start[p.first] : f.start[p.last]]
        # FSDP averages gradients over the ranks, Z counts all of them
        (torch.from_numpy(slope * self.world).to(logp) @ logp).backward()

    def _total(self, outcomes: dict[int, Outcome]) -> Array:
        rows = [(o.loss, o.clipped, o.masked, o.mismatch.tokens, o.mismatch.w, o.mismatch.w2, o.mismatch.k3) for o in outcomes.values()]
        total = torch.tensor(rows, dtype=torch.float64).reshape(-1, 7).sum(0).to(self.config.learner.device)
        if self.world > 1:
            dist.all_reduce(total)
        return total.cpu().numpy()

    def _apply(self, loss: float, forests: Sequence[Forest]) -> float:
        """Clip, check and take the optimizer step; returns the norm before clipping."""
        norm = float(sharding.full(torch.nn.utils.clip_grad_norm_(self._trained, self.config.learner.clip_grad)))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            path = self.keep_dir / f"nonfinite-version-{self.version}.arrow"
            if self.rank == 0:
                wire.write_file(path, forests, str(self.source))
            raise NonFinite(self.version, "the loss" if not math.isfinite(loss) else "the gradient", path)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.version)
        self.optimizer.step()
        self.version += 1
        return norm

    def learning_rate(self, version: int) -> float:
        """Linear warm-up, then constant or a cosine that reaches 0 after the run's last step."""
        c, last = self.config.learner, self.config.run.steps
        if version < c.warmup_steps:
            return c.lr * (version + 1) / c.warmup_steps
        if c.schedule == "constant":
            return c.lr
        done = min(1.0, (version - c.warmup_steps) / max(1, last - c.warmup_steps))
        return c.lr * 0.5 * (1.0 + math.cos(math.pi * done))

    def _report(self, forests: Sequence[Forest], totals: Array, norm: float, seconds: dict[str, float]) -> StepReport:
        loss, clipped, masked, tokens = map(float, totals[:4])
        mismatch = Mismatch(*map(float, totals[3:]))
        return StepReport(
            version=self.version,
            loss=loss,
            grad_norm=norm,
            lr=self.learning_rate(self.version - 1),
            clip_ratio=clipped / tokens,
            mask_ratio=masked / tokens,
            mismatch_kl=mismatch.kl,
            ess=mismatch.effective_share,
            staleness=[self.version - 1 - f.oldest_version for f in forests],
            tokens=sum(f.tokens for f in forests),
            expanded_tokens=sum(f.expanded_tokens for f in forests),
            leaves=sum(f.leaves for f in forests),
            reward_mean=float(np.mean(np.concatenate([f.reward[f.judged] for f in forests]))),
            verdicts=dict(Counter(Verdict(v).name.lower() for f in forests for v in f.verdict)),
            entropy_mean=float(np.mean(np.concatenate([f.entropy for f in forests]))),
            zero_variance=float(np.mean([np.ptp(f.reward[f.judged]) == 0 for f in forests])),
            seconds=seconds,
            mfu=utilisation(self.policy.model, forests, seconds["forward_backward"] * self.world, self.config.learner.device),
        )

    # ---- weights out, checkpoints --------------------------------------------------------------------------------------------
    def buckets(self, max_bytes: int) -> Iterator[dict[str, Any]]:
        """The weights by Hugging Face name in the generators' dtype, at most `max_bytes` at a time: this rank's
        share. All ranks must run it to the end.

        float32 comes as numpy arrays (which Ray hands over without a copy), bfloat16 as torch tensors.
        """
        dtype = _DTYPES[self.config.generator.dtype]
        for bucket in weights.buckets(self.policy, max_bytes, dtype):
            yield {n: t.numpy() for n, t in bucket.items()} if dtype == torch.float32 else bucket

    def save(self, folder: str | Path) -> None:
        """Write a checkpoint into `folder`, which must not exist yet. All ranks call it. The folder is also
        a plain Hugging Face folder. A crash may leave it incomplete."""
        if self.rank == 0:
            Path(folder).mkdir(parents=True)
        if self.world > 1:
            dist.barrier()
        self.write_files(Path(folder))
        if self.world > 1:
            dist.barrier()

    def write_files(self, folder: Path) -> None:
        """Write this rank's files of a checkpoint into an existing folder, which the ranks need not share."""
        self._checkpointed.write(folder, {"version": self.version})

    def restore(self, folder: str | Path) -> None:
        """Continue from a checkpoint, bitwise on CPU."""
        self.version = self._checkpointed.restore(Path(folder))["version"]

    @property
    def _checkpointed(self) -> Checkpointed:
        return Checkpointed(policy=self.policy, optimizer=self.optimizer, source=self.source)
