"""The trainer's report of a step, and the error for updates that are not finite."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch

from treeadv.learning.answers import AnswerFigures


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """The report of one step, which takes the optimizer updates on one batch of forests on all ranks.

    Shares are in [0, 1] over the tokens of all updates. `loss` and `grad_norm` are means over the updates taken, and 0
    if no update was taken. `seconds` are wall seconds by phase."""

    version: int  # version of the weights after the step; it counts optimizer updates
    updates: int  # optimizer updates taken
    idle_updates: int  # updates not taken, because no forest of the mini-batch could change the weights
    nonfinite_updates: int  # updates not taken, because loss or gradient was not finite
    nonfinite_forests: tuple[str, ...]  # ids of the forests of these updates that no other update trained
    nonfinite_batch: Path | None  # the file that keeps the batch if an update was not finite
    clipped_gradients: int  # updates whose gradient norm was above learner.clip_grad
    forests_without_gradient: int  # forests not packed: all advantages are 0 and the loss has no KL term
    loss: float
    grad_norm: float  # norm of the gradient before clipping
    lr: float  # learning rate of the last update
    clip_ratio: float
    mask_ratio: float
    mismatch_kl: float  # nats per token: KL(behaviour policy || proximal policy)
    ess: float  # effective sample size divided by the number of tokens
    reference_kl: float  # nats per token, by the estimator of the loss; 0 without a KL term
    staleness: list[int]  # by forest: version at the arrival of the batch minus the oldest version of a token
    # By forest: number of updates between the arrival of the batch and the first update that trains on the forest.
    publication_lag: list[int]
    tokens: int
    expanded_tokens: int
    leaves: int
    reward_mean: float
    verdicts: dict[str, int]  # leaves by verdict
    entropy_mean: float  # mean in nats over the tokens of the forests
    zero_variance: float  # share of forests whose leaves all have the same reward
    answers: AnswerFigures
    seconds: dict[str, float]
    mfu: float | None

    @property
    def void(self) -> bool:
        """Return whether every update was skipped as not finite. Such a batch does not count as a step."""
        return self.nonfinite_updates > 0 and not self.updates and not self.idle_updates


class NonFinite(RuntimeError):
    """The error after too many updates in a row whose loss or gradient is not finite.

    The file `batch` has the last batch.
    """

    def __init__(self, version: int, what: str, batch: Path) -> None:
        # The arguments are passed on, because Ray pickles the error and `Exception` pickles its arguments.
        super().__init__(version, what, batch)
        self.version, self.what, self.batch = version, what, batch

    def __str__(self) -> str:
        return (
            f"batch of version {self.version}: {self.what} of an update is not finite; more updates in a row are not"
            " finite than learner.max_nonfinite allows. The weights are unchanged. To run the batch again:"
            f" treeadv reproduce RUN --batch {self.batch}"
        )


class Phases:
    """A clock of wall seconds by phase. A phase ends when the accelerator has finished its work."""

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
