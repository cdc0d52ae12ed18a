"""The loss of a forest, and its derivative by the log-probability of each token.

The loss needs no autograd graph, because log pi is its only variable. The trainer backpropagates `slope . log pi`
through the model. `evaluate` computes the slope in float64 with prefix sums over segments and leaves.

J is the gain of a token of segment s. The sum runs over the leaves l of s. The mass of l is
m_l = (c(s) / K(s)) u_l / Z, where u_l is 1, or 1 / |path of l| under sequence_mean:
    clip   J = sum_l m_l min(x A, clip(x, 1 - low, 1 + high) A), for A < 0 at least dual_clip A
    cispo  J = sum_l m_l sg[clip(x, 1 - low, 1 + high)] A log pi
x is pi / pi_proximal of the token, or s_l = exp(mean of its log along the path) in the token form sg[s_l] pi /
sg[pi] (GSPO). A is A(s), or A_l under credit=leaf. With `branch_td` the branch step of a segment is added to A at the
first token of the segment. The loss is -w J, with the weights w of the correction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import numpy.typing as npt

from treeadv.config import LearnerConfig, SamplingConfig
from treeadv.forest import Forest
from treeadv.learning.advantage import Array, advantages, branch_steps, leaf_advantages, leaf_sum, path_sum
from treeadv.learning.correction import NO_CORRECTION, Correction, correct, exp, find_correction, path_mean, segment_sum
from treeadv.presets import AdvantageSpec, build_advantage

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The loss that an update minimises.

    `room` is the largest number of tokens of a forest. It is the divisor of normaliser=constant."""

    spec: AdvantageSpec
    correction: Correction = NO_CORRECTION
    kl: float = 0.0  # weight of the KL to the reference
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    room: int = 1

    def needs_path(self, proximal_known: bool) -> bool:
        """Return whether the loss of a token depends on log pi of other tokens on its paths.

        If not, a forest that is cut into several micro-batches needs only one forward pass. `proximal_known` says that
        an earlier pass has computed pi_proximal of all tokens."""
        if self.spec.ratio == "leaf_path" and (proximal_known or self.correction.ratio_to == "behaviour"):
            return True  # with an unknown pi_proximal, pi equals pi_proximal and the ratio is 1
        return self.correction.needs_path and not proximal_known


def build_objective(learner: LearnerConfig, sampling: SamplingConfig) -> Objective:
    """Return the objective of a configuration. Raises `BadInput` for an unknown name or options that conflict."""
    return Objective(
        spec=build_advantage(learner.preset, learner.advantage),
        correction=find_correction(learner.correction, learner.correction_bounds),
        kl=learner.kl, kl_estimator=learner.kl_estimator, room=sampling.leaves * sampling.max_tokens,
    )  # fmt: skip


def scales(forests: Sequence[Forest], o: Objective) -> list[float]:
    """Return 1/Z of each forest. `forests` are the forests of an update on all ranks. Only judged leaves count.

    For token_mean, Z is the sum of c(s) |s| over the update, without the tokens that `max_prob` excludes. For
    sequence_mean, Z is the number of forests times the number of leaves of the forest. For constant, Z is the number of
    forests times `room`."""
    if o.spec.normaliser == "token_mean":
        total = sum(float(advantages(f, o.spec)[1] @ segment_sum(f, trained_tokens(f, o.spec))) for f in forests)
        return [1.0 / (total or 1.0)] * len(forests)  # a total of 0 means that no token is trained
    if o.spec.normaliser == "constant":
        return [1.0 / (len(forests) * o.room)] * len(forests)
    return [1.0 / (len(forests) * max(int(f.judged.sum()), 1)) for f in forests]


def trained_tokens(f: Forest, spec: AdvantageSpec) -> Array:
    """Return [T]: 0 for a token that the behaviour policy drew with a probability above `max_prob`, else 1."""
    return (np.exp(f.logprob.astype(np.float64)) <= spec.max_prob).astype(np.float64)


def changes_nothing(f: Forest, o: Objective) -> bool:
    """Return whether the slope of a forest is 0 at every token under any policy.

    The slope is 0 if no leaf is judged, or if every advantage is 0 and the loss has no KL term."""
    if o.kl:
        return not f.judged.any()
    return not (leaf_advantages(f, o.spec) if o.spec.credit == "leaf" else advantages(f, o.spec)[0]).any()


@dataclass(frozen=True, kw_only=True)
class Sums:
    """The sums of figures over tokens. They can be added over forests and ranks.

    A shared token adds to `clipped` and `masked` the share of its leaves that are clipped or masked."""

    tokens: float = 0.0
    loss: float = 0.0
    clipped: float = 0.0
    masked: float = 0.0  # number of tokens that the correction gives weight 0
    w: float = 0.0  # sum of w = pi_proximal / mu
    w_squared: float = 0.0
    k3: float = 0.0  # sum of w - 1 - log w
    kl: float = 0.0  # sum of the estimate of KL(pi || reference) in the loss

    def array(self) -> Array:
        return np.array([getattr(self, f.name) for f in fields(self)], np.float64)

    @classmethod
    def of_array(cls, x: npt.NDArray[np.float64]) -> Sums:
        return cls(**{f.name: float(v) for f, v in zip(fields(cls), x, strict=True)})

    def __add__(self, other: Sums) -> Sums:
        return Sums.of_array(self.array() + other.array())

    @property
    def effective_share(self) -> float:
        """Return the effective sample size divided by the number of tokens: (sum w)^2 / (n sum w^2), in (0, 1]."""
        return self.w**2 / (self.tokens * self.w_squared)

    @property
    def mismatch_kl(self) -> float:
        """Return KL(mu || pi_proximal) in nats per token.

        The estimator is k3, the mean of w - 1 - log w over tokens that mu drew."""
        return self.k3 / self.tokens


@dataclass(frozen=True, kw_only=True)
class TokenLosses:
    """The loss of a forest by token. `slope` is d loss / d log pi. All arrays are [T]."""

    loss: Array
    slope: Array
    clipped: Array
    masked: Array
    log_w: Array
    kl: Array

    def sums(self, first: int = 0, last: int | None = None) -> Sums:
        """Return the sums over the tokens [first, last)."""
        span = slice(first, last)
        log_w = self.log_w[span]
        w = exp(log_w)
        return Sums(
            tokens=len(w), loss=float(self.loss[span].sum()), clipped=float(self.clipped[span].sum()),
            masked=float(self.masked[span].sum()), w=float(w.sum()), w_squared=float((w**2).sum()),
            k3=float((w - 1.0 - log_w).sum()), kl=float(self.kl[span].sum()),
        )  # fmt: skip


def evaluate(
    f: Forest, o: Objective, scale: float, logp: Array, proximal: Array | None = None, reference: Array | None = None
) -> TokenLosses:
    """Return the loss of a graded forest at log pi = `logp` [T], and its derivative.

    `proximal` [T] is log pi_proximal, the log-probs under the policy at the arrival of the batch. If it is None, it
    equals `logp`, as in the first update of a batch. `reference` [T] holds the log-probs under the reference, which the
    KL term needs. Tokens without a judged leaf below them have loss and slope 0."""
    if not f.judged.all():
        return _evaluate_judged(f, o, scale, logp, proximal, reference)
    proximal = logp if proximal is None else proximal
    behaviour = f.logprob.astype(np.float64)
    log_w = proximal - behaviour
    weights = correct(o.correction, f, log_w)
    token = weights.token * trained_tokens(f, o.spec)
    mass = _LeafMass(f, o.spec, scale)
    log_ratio = logp - (behaviour if o.correction.ratio_to == "behaviour" else proximal)
    gain, slope, clipped = _surrogate(f, o.spec, mass, weights.leaf, log_ratio, logp)
    loss, slope = -token * gain, -token * slope
    kl = np.zeros(f.tokens)
    if o.kl:
        if reference is None:
            raise ValueError("the KL term needs the log-probabilities of the reference")
        kl, kl_slope = _kl(o.kl_estimator, logp - reference)
        weight = o.kl * np.repeat(mass.total(np.ones(f.leaves)), f.lengths)
        loss, slope = loss + weight * kl, slope + weight * kl_slope
    surviving = leaf_sum(f, weights.leaf != 0) / f.leaf_count
    masked = np.where(token == 0, 1.0, 1.0 - np.repeat(surviving, f.lengths))
    return TokenLosses(loss=loss, slope=slope, clipped=clipped, masked=masked, log_w=log_w, kl=kl)


def _evaluate_judged(
    f: Forest, o: Objective, scale: float, logp: Array, proximal: Array | None, reference: Array | None
) -> TokenLosses:
    """Return `evaluate` of the judged part of the forest. Tokens without a judged leaf below them have 0."""
    tokens = np.repeat(f.judged_below, f.lengths)
    out = {name.name: np.zeros(f.tokens) for name in fields(TokenLosses)}
    if tokens.any():
        others = [None if x is None else x[tokens] for x in (proximal, reference)]
        losses = evaluate(f.judged_part(), o, scale, logp[tokens], *others)
        for name, values in out.items():
            values[tokens] = getattr(losses, name)
    return TokenLosses(**out)


def _kl(estimator: str, d: Array) -> tuple[Array, Array]:
    """Return (estimate [T], derivative by log pi [T]) of KL(pi || reference), with d = log pi - log reference [T].

    Source: Schulman, "Approximating KL divergence" (2020)."""
    if estimator == "k1":
        return d, np.ones_like(d)
    if estimator == "k2":
        return d**2 / 2.0, d
    return np.expm1(-d) + d, -np.expm1(-d)


class _LeafMass:
    """The computation of the sum of m_l A x_l over the leaves l of each segment.

    It has separate sums for positive and for negative advantages."""

    def __init__(self, f: Forest, spec: AdvantageSpec, scale: float) -> None:
        A, c = advantages(f, spec)
        self.f, self.A, self.share = f, A, scale * c / f.leaf_count
        self.own = leaf_advantages(f, spec) if spec.credit == "leaf" else None
        self.pairs = _Pairs(f, self.own, branch_steps(f, spec)) if self.own is not None and spec.branch_td else None
        length = path_sum(f, f.lengths)[f.leaf_segment]
        self.u = 1.0 / length if spec.normaliser == "sequence_mean" else np.ones(f.leaves)

    def total(self, x: Array) -> Array:
        """Return [S]: the sum of m_l x_l, without the advantage."""
        return self.share * leaf_sum(self.f, self.u * x)

    def positive(self, x: Array) -> Array:
        """Return [T]: the sum over positive advantages."""
        if self.own is None:
            return np.repeat(np.maximum(self.A, 0) * self.total(x), self.f.lengths)
        return self._of_leaves(np.maximum, x)

    def negative(self, x: Array) -> Array:
        """Return [T]: the sum over negative advantages."""
        if self.own is None:
            return np.repeat(np.minimum(self.A, 0) * self.total(x), self.f.lengths)
        return self._of_leaves(np.minimum, x)

    def _of_leaves(self, bound: np.ufunc, x: Array) -> Array:
        """Return [T]: the sum over the positive or the negative parts of the leaves' advantages."""
        out = np.repeat(self.total(bound(self.own, 0) * x), self.f.lengths)
        if self.pairs is not None:
            out[self.f.start[:-1]] = self.share * self.pairs.sum(bound(self.pairs.advantage, 0), self.u * x)
        return out

    def clipped_leaves(self, if_positive: Flags, if_negative: Flags) -> Array:
        """Return [S]: the share of the segment's leaves that are clipped.

        The arguments [L] say whether a leaf is clipped if its advantage is positive, and if it is negative."""
        if self.own is None:
            hit = np.where(self.A > 0, leaf_sum(self.f, if_positive), leaf_sum(self.f, if_negative) * (self.A < 0))
        else:
            hit = leaf_sum(self.f, np.where(self.own > 0, if_positive, if_negative & (self.own < 0)))
        return hit / self.f.leaf_count


class _Pairs:
    """The pairs (segment, leaf under the segment), with the advantage of the first token of the segment for this leaf.

    The advantage is the sum of the leaf's advantage and the branch step of the segment."""

    def __init__(self, f: Forest, own: Array, step: Array) -> None:
        self.segments = f.segments
        self.segment = np.repeat(np.arange(f.segments), f.leaf_count)
        first = np.concatenate([[0], np.cumsum(f.leaf_count)[:-1]])
        self.leaf = np.arange(len(self.segment)) + np.repeat(f.leaf_begin - first, f.leaf_count)
        self.advantage = own[self.leaf] + step[self.segment]

    def sum(self, y: Array, x: Array) -> Array:
        """Return [S]: the sum over the pairs of each segment.

        A pair adds its entry of `y` times the entry of `x` [L] of its leaf.
        """
        return np.bincount(self.segment, y * x[self.leaf], self.segments).astype(np.float64)


def _surrogate(
    f: Forest, spec: AdvantageSpec, mass: _LeafMass, leaf: Array, log_ratio: Array, logp: Array
) -> tuple[Array, Array, Array]:
    """Return (J, derivative of J by log pi, share clipped), each [T], under the leaf weights `leaf` [L]."""
    if spec.ratio == "token":
        x = exp(log_ratio)
        up, down = mass.positive(leaf), mass.negative(leaf)
        bounded = _BoundedRatio(spec, x)
        hit = (bounded.up_clipped & (up > 0)) | (bounded.down_clipped & (down < 0))
        gain = up * bounded.up + down * bounded.down
        if spec.surrogate == "cispo":
            return gain * logp, gain, hit.astype(np.float64)
        return gain, x * (up * ~bounded.up_clipped + down * ~bounded.down_clipped), hit.astype(np.float64)
    s = exp(path_mean(f, log_ratio))
    bounded = _BoundedRatio(spec, s)
    gain = mass.positive(leaf * bounded.up) + mass.negative(leaf * bounded.down)
    clipped = np.repeat(mass.clipped_leaves(bounded.up_clipped, bounded.down_clipped), f.lengths)
    if spec.surrogate == "cispo":
        return gain * logp, gain, clipped
    slope = mass.positive(leaf * s * ~bounded.up_clipped) + mass.negative(leaf * s * ~bounded.down_clipped)
    return gain, slope, clipped


class _BoundedRatio:
    """The ratio within the bounds of the surrogate, for a positive (`up`) and for a negative advantage (`down`).

    `up_clipped` and `down_clipped` say where the bounded ratio has no gradient."""

    def __init__(self, spec: AdvantageSpec, x: Array) -> None:
        low, high = 1.0 - spec.clip[0], 1.0 + spec.clip[1]
        if spec.surrogate == "cispo":
            self.up = self.down = np.clip(x, low, high)
            self.up_clipped = self.down_clipped = (x < low) | (x > high)
            return
        limit = spec.dual_clip or np.inf
        self.up, self.up_clipped = np.minimum(x, high), x > high
        self.down, self.down_clipped = np.clip(x, low, limit), (x < low) | (x > limit)
