"""What the trainer reports of a step, and the error of an update that is not finite."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """One step: the optimizer updates on one batch of forests, on all ranks.

    Shares are in [0, 1] over the tokens of all updates; `loss` and `grad_norm` are means over the updates that were
    taken, and 0 where none was. `seconds` is by phase."""

    version: int  # of the weights after the step; it counts optimizer updates
    updates: int  # optimizer updates taken
    idle_updates: int  # not taken, because no forest of the mini-batch could change the weights
    nonfinite_updates: int  # not taken, because loss or gradient was not finite
    nonfinite_forests: tuple[str, ...]  # ids of the forests of those that no other update trained
    nonfinite_batch: Path | None  # where the batch is kept if there are any
    clipped_gradients: int  # updates whose gradient norm was above learner.clip_grad
    forests_without_gradient: int  # not packed: all their advantages are 0 and there is no KL
    loss: float
    grad_norm: float  # before clipping
    lr: float  # of the last update
    clip_ratio: float
    mask_ratio: float
    mismatch_kl: float  # nats, proximal to behaviour policy
    ess: float  # effective samples a token
    reference_kl: float  # nats a token, by the estimator of the loss; 0 without a KL term
    staleness: list[int]  # by forest: version when the batch arrived, minus that of the oldest token
    # By forest: updates between the arrival of the batch and the first update that trains on it
    publication_lag: list[int]
    tokens: int
    expanded_tokens: int
    leaves: int
    reward_mean: float
    verdicts: dict[str, int]  # leaves by verdict
    entropy_mean: float  # nats, over the tokens of the forests
    zero_variance: float  # share of forests whose leaves all have the same reward
    seconds: dict[str, float]
    mfu: float | None

    @property
    def void(self) -> bool:
        """Whether every update was skipped because it was not finite: the batch is no step."""
        return self.nonfinite_updates > 0 and not self.updates and not self.idle_updates


class NonFinite(RuntimeError):
    """Too many updates in a row had a loss or a gradient that is not finite. The batch of the last one lies in
    `batch`."""

    def __init__(self, version: int, what: str, batch: Path) -> None:
        # The arguments themselves: by these it is pickled on its way through Ray
        super().__init__(version, what, batch)
        self.version, self.what, self.batch = version, what, batch

    def __str__(self) -> str:
        return (
            f"batch of version {self.version}: {self.what} of an update is not finite, once more than"
            " learner.max_nonfinite allows in a row; the weights are unchanged and the batch is kept: to run it again,"
            f" treeadv reproduce RUN --batch {self.batch}"
        )


class Phases:
    """Wall seconds by phase. The accelerator's queue is drained at the end of each phase."""

    def __init__(self, device: str) -> None:
        self.seconds: dict[str, float] = {}
        self._cuda = device == "cuda"

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        began = perf_counter()
        yield
        if self._cuda:
            torch.cuda.synchronize()
        self.seconds[name] = self.seconds.get(name, 0.0) + perf_counter() - began
