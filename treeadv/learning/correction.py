"""Off-policy correction (docs/method.md): how much a token counts that an older or numerically different policy drew.

w = pi_proximal / mu per token, mu the behaviour policy as the engine reported it. Every correction is the identity at w = 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from treeadv.forest import Forest
from treeadv.learning.advantage import Array, path_sum

Kind = Literal["none", "tis", "sequence_tis", "icepop", "decoupled"]

CAP = 2.0  # truncated importance sampling (Yao et al.), verl's default
ICEPOP = (0.5, 5.0)  # tokens with w outside are masked (verl's default bounds)
_EXP_LIMIT = 20.0  # log w beyond +-20 is cut before exp: 5e8 says the same as infinity, without NaN


@dataclass(frozen=True, slots=True)
class Correction:
    """`token` [T] multiplies a token's loss, `leaf` [L] what a leaf gives to its tokens (a shared token gets its leaves' mean)."""

    token: Array
    leaf: Array


def correct(kind: Kind, f: Forest, log_w: Array) -> Correction:
    """The weights for log w [T] of a forest.

    none: 1. tis: min(w, 2) by token. sequence_tis: min(product of w along the leaf path, 2) by leaf. icepop: w inside [0.5, 5],
    else 0, by token. decoupled: w by token, for a ratio taken to the proximal policy (decoupled PPO, Hilton et al.).
    """
    ones = np.ones(f.leaves)
    if kind == "none":
        return Correction(np.ones(f.tokens), ones)
    if kind == "sequence_tis":
        product = _exp(path_sum(f, segment_sum(f, log_w)))[f.leaf_segment]
        return Correction(np.ones(f.tokens), np.minimum(product, CAP))
    w = _exp(log_w)
    if kind == "tis":
        return Correction(np.minimum(w, CAP), ones)
    if kind == "icepop":
        return Correction(np.where((w >= ICEPOP[0]) & (w <= ICEPOP[1]), w, 0.0), ones)
    return Correction(w, ones)


def segment_sum(f: Forest, x: Array) -> Array:
    """[S] sum of x [T] over the tokens of each segment."""
    return np.add.reduceat(x, f.start[:-1])


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Sums over tokens from which the share of effective samples and the divergence follow; they add over forests and ranks."""

    tokens: float
    w: float
    w2: float
    k3: float

    @property
    def effective_share(self) -> float:
        """(sum w)^2 / (n sum w^2), in (0, 1]."""
        return self.w**2 / (self.tokens * self.w2)

    @property
    def kl(self) -> float:
        """KL(mu || pi) in nats by the estimator k3: mean of w - 1 - log w over tokens drawn from mu."""
        return self.k3 / self.tokens


def mismatch(log_w: Array) -> Mismatch:
    """The statistics of log(pi / mu) [T], not truncated."""
    w = _exp(log_w)
    return Mismatch(len(w), float(w.sum()), float((w**2).sum()), float((w - 1.0 - log_w).sum()))


def _exp(x: Array) -> Array:
    return np.exp(np.clip(x, -_EXP_LIMIT, _EXP_LIMIT))
