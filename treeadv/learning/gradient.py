"""Computes the gradient of an optimizer update.

Packs forests into micro-batches and runs forward and backward passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from treeadv.forest import Forest
from treeadv.learning import packing, sharding
from treeadv.learning.advantage import Array
from treeadv.learning.objective import Objective, Sums, changes_nothing, evaluate, scales
from treeadv.learning.packing import Packed
from treeadv.learning.policy import Policy
from treeadv.learning.report import Phases


@dataclass(kw_only=True)
class Update:
    """One optimizer update: the forests that can change the weights, and this rank's micro-batches.

    `scale` is 1/Z by forest. `cut` holds the micro-batches that have a piece of a cut forest. They are not packed
    again, because kernels may round differently in another packing, and a ratio of leaf paths (GSPO) would clip that
    noise. `proximal` is log pi [T] by forest of this rank, under the policy at the arrival of the batch. It is None
    before it is computed."""

    forests: list[Forest]
    scale: list[float]
    batches: list[Packed]
    cut: list[Packed]
    proximal: dict[int, Array] | None = None


class GradientPass:
    """The computation that packs updates and accumulates their gradients in the parameters of the policy.

    All ranks call the same methods in the same order."""

    def __init__(
        self,
        *,
        policy: Policy,
        reference: Policy | None,
        objective: Objective,
        limit: int,
        dtype: torch.dtype,
        rank: int,
        world: int,
        accumulate_sharded: bool,
    ) -> None:
        """Keep the settings.

        `limit` is the largest number of rows of a micro-batch. `dtype` is the dtype of the computation. The KL term
        needs `reference`. With `accumulate_sharded` the ranks reduce gradients after every micro-batch, otherwise only
        after the last micro-batch."""
        self.policy, self.reference, self.objective = policy, reference, objective
        self.limit, self.dtype, self.rank, self.world = limit, dtype, rank, world
        self.accumulate_sharded = accumulate_sharded

    def prepare(self, forests: Sequence[Forest]) -> Update:
        """Pack the forests of an update. Forests that cannot change the weights count in Z and are not packed."""
        scale = scales(forests, self.objective)
        kept = [n for n, f in enumerate(forests) if not changes_nothing(f, self.objective)]
        active = [forests[n] for n in kept]
        batches, cut = self._pack(active) if active else ([], [])
        return Update(forests=active, scale=[scale[n] for n in kept], batches=batches, cut=cut)

    def note_proximal(self, update: Update) -> None:
        """Set `update.proximal` to log pi of the update's forests under the current weights."""
        update.proximal = self._log_probs(self.policy, update.forests, update.batches)

    def log_probs(self, forests: Sequence[Forest]) -> dict[int, Array]:
        """Return log pi [T] of the forests of this rank, by index in `forests`."""
        return self._log_probs(self.policy, forests, self._pack(forests)[0])

    def accumulate(self, update: Update, clock: Phases) -> Sums:
        """Add the gradient of the update's loss to the parameters and return the sums of the loss over all ranks.

        Also sets `update.proximal` if it is None."""
        forests, o = update.forests, self.objective
        with clock("log_probs"):
            reference = self._log_probs(self.reference, forests, update.batches) if self.reference else {}
            current: dict[int, Array] = {}
            if o.needs_path(update.proximal is not None):
                current = self._log_probs(self.policy, forests, update.cut)
        seen = _PartialLogProbs(forests)
        total = Sums()
        with clock("forward_backward"):
            for packed in update.batches:
                if self.world > 1:
                    sharding.reduce_gradients(self.policy, self.accumulate_sharded or packed is update.batches[-1])
                with self._autocast():
                    logp = self.policy(packed)
                known = logp.detach().double().cpu().numpy()
                slope = np.zeros(len(known))
                for piece, (a, b) in zip(packed.pieces, packed.span, strict=True):
                    n, f = piece.forest, forests[piece.forest]
                    first, last = int(f.start[piece.first]), int(f.start[piece.last])
                    seen.put(n, first, known[a:b])
                    proximal = update.proximal[n] if update.proximal is not None else None
                    # Without `current` the loss of a token depends only on its own log pi. The tokens of other
                    # micro-batches may then have any values.
                    at = current[n] if n in current else seen.filled(n, proximal)
                    losses = evaluate(f, o, update.scale[n], at, proximal, reference.get(n))
                    slope[a:b] = losses.slope[first:last]
                    total = total + losses.sums(first, last)
                # Z counts the forests of all ranks, but FSDP averages gradients over the ranks.
                (torch.from_numpy(slope * self.world).to(logp) @ logp).backward()
        if update.proximal is None:
            update.proximal = seen.values
        return self._over_ranks(total)

    def _over_ranks(self, sums: Sums) -> Sums:
        if self.world == 1:
            return sums
        total = torch.from_numpy(sums.array()).to(self.policy.device)
        dist.all_reduce(total)
        return Sums.of_array(total.cpu().numpy())

    def _pack(self, forests: Sequence[Forest]) -> tuple[list[Packed], list[Packed]]:
        """Return this rank's micro-batches, and the micro-batches among them that have a piece of a cut forest.

        All ranks run the same number of micro-batches, because all ranks gather a sharded layer together. A rank with
        fewer micro-batches adds micro-batches without targets."""
        parts = packing.pieces(forests, self.limit)
        rows = [sum(p.tokens for p in parts if p.forest == n) for n in range(len(forests))]
        groups = [
            packing.group([p for p in parts if p.forest in set(share)], self.limit)
            for share in packing.balance(rows, self.world)
        ]
        cut = [[any(not p.whole(forests) for p in group) for group in of_rank] for of_rank in groups]
        batches = [packing.pack(forests, group) for group in groups[self.rank]]
        again = [packed for packed, is_cut in zip(batches, cut[self.rank], strict=True) if is_cut]

        def filled(own: list[Packed], most: int) -> list[Packed]:
            return own + [packing.filler(forests) for _ in range(most - len(own))]

        return filled(batches, max(map(len, groups))), filled(again, max(map(sum, cut)))

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.policy.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    @torch.no_grad()
    def _log_probs(self, model: Policy, forests: Sequence[Forest], batches: Sequence[Packed]) -> dict[int, Array]:
        """Return log pi [T] of the forests in `batches`, by index, without gradient."""
        seen = _PartialLogProbs(forests)
        for packed in batches:
            with self._autocast():
                logp = model(packed).double().cpu().numpy()
            for piece, (a, b) in zip(packed.pieces, packed.span, strict=True):
                seen.put(piece.forest, int(forests[piece.forest].start[piece.first]), logp[a:b])
        sharding.reshard(model)
        return seen.values


class _PartialLogProbs:
    """The log-probs [T] of forests in which some tokens are not computed yet."""

    def __init__(self, forests: Sequence[Forest]) -> None:
        self._forests = forests
        self._known: dict[int, np.ndarray] = {}
        self.values: dict[int, Array] = {}

    def put(self, forest: int, first: int, logp: Array) -> None:
        """Store the log-probs of the tokens from index `first` on."""
        tokens = self._forests[forest].tokens
        self.values.setdefault(forest, np.zeros(tokens))[first : first + len(logp)] = logp
        self._known.setdefault(forest, np.zeros(tokens, bool))[first : first + len(logp)] = True

    def filled(self, forest: int, proximal: Array | None) -> Array:
        """Return log-probs [T] of a forest.

        A token that is not computed yet gets its log-prob under the proximal policy, or under the behaviour policy if
        `proximal` is None."""
        rest = self._forests[forest].logprob.astype(np.float64) if proximal is None else proximal
        return np.where(self._known[forest], self.values[forest], rest)
