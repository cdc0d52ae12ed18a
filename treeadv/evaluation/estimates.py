"""Estimates with confidence intervals. The problems are the sample, so the bootstrap resamples the problems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
import numpy.typing as npt

CONFIDENCE = 0.95
RESAMPLES = 2000
_BATCH = 100  # number of resamples that are in memory at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean over problems with its 95 % confidence interval. The interval is None if the problems do not allow an
    interval."""

    value: float
    interval: tuple[float, float] | None


def pass_at_k(n: int, c: int, k: int) -> float:
    """Return the probability that at least one of k draws without replacement passes, if c of n samples pass.

    The value is 1 - C(n-c, k) / C(n, k). It is an unbiased estimate of 1 - (1-p)^k if the samples are independent
    (Chen et al. 2021, arXiv:2107.03374, equation 1)."""
    return 1.0 - comb(n - c, k) / comb(n, k)


def powers(n: int) -> list[int]:
    """Return 1, 2, 4, ... and n. These are the k of pass@k for n samples."""
    return sorted({1 << i for i in range(n.bit_length()) if 1 << i <= n} | {n})


def mean_over(values: Sequence[float]) -> Estimate:
    """Return the mean of `values`, one value in [0, 1] for each problem, with its interval.

    The interval is a bias-corrected and accelerated bootstrap over the problems. If all values are 0 or all are 1,
    the bootstrap has no spread, so the interval is the exact binomial interval. If all values are another number, or
    if there is only one problem, the result has no interval."""
    v = np.asarray(values, np.float64)
    return Estimate(value=float(v.mean()), interval=_interval([v]))


def mean_of_means(sets: Sequence[Sequence[float]]) -> Estimate:
    """Return the unweighted mean over sets of the mean over problems. The bootstrap resamples each set separately.

    The result has no interval if all problems of a set give the same value. Such a set has no spread to resample,
    and the interval would be too narrow."""
    samples = [np.asarray(s, np.float64) for s in sets]
    return Estimate(value=float(np.mean([s.mean() for s in samples])), interval=_interval(samples))


def _interval(samples: Sequence[npt.NDArray[np.float64]]) -> tuple[float, float] | None:
    from scipy.stats import binomtest, bootstrap

    if len(samples) == 1 and len(samples[0]) > 1 and samples[0][0] in (0.0, 1.0) and np.ptp(samples[0]) == 0:
        count = len(samples[0])
        exact = binomtest(int(samples[0].sum()), count).proportion_ci(CONFIDENCE, "exact")
        return float(exact.low), float(exact.high)
    if any(len(s) < 2 or np.ptp(s) == 0 for s in samples):
        return None

    def statistic(*parts: npt.NDArray[np.float64], axis: int) -> npt.NDArray[np.float64]:
        return np.asarray(sum(p.mean(axis=axis) for p in parts) / len(parts))

    found = bootstrap(
        tuple(samples), statistic, n_resamples=RESAMPLES, batch=_BATCH, vectorized=True, confidence_level=CONFIDENCE,
        method="BCa", rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    return float(found.low), float(found.high)
