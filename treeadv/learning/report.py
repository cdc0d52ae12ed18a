"""What a step says of itself, and how a step refuses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch


@dataclass(frozen=True, slots=True)
class StepReport:
    """One optimizer step. Shares are in [0, 1] over tokens; `seconds` by phase; `version` is that of the weights after the step."""

    version: int
    loss: float
    grad_norm: float  # before clipping
    lr: float
    clip_ratio: float
    mask_ratio: float
    mismatch_kl: float  # nats
    ess: float
    staleness: list[int]  # of each forest, in versions
    tokens: int
    expanded_tokens: int
    leaves: int
    reward_mean: float
    verdicts: dict[str, int]  # leaves by verdict
    entropy_mean: float  # nats, over the tokens of the forests
    zero_variance: float  # share of forests whose leaves all have the same reward
    seconds: dict[str, float]
    mfu: float | None


class NonFinite(RuntimeError):
    """A loss or a gradient that is not finite: the optimizer did not step, the batch lies in `batch`."""

    def __init__(self, version: int, what: str, batch: Path) -> None:
        super().__init__(version, what, batch)  # the arguments themselves: by these it is pickled on its way through Ray
        self.version, self.what, self.batch = version, what, batch

    def __str__(self) -> str:
        return (
            f"step for version {self.version}: {self.what} is not finite; the weights are unchanged and the batch is kept: to run it "
            f"again, treeadv reproduce RUN --batch {self.batch}"
        )


class Phases:
    """Wall seconds by phase, the accelerator's queue drained at every end."""

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
