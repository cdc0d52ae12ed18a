"""The clipped objective on a forest (docs/method.md) as a value and its derivative by the log-probability of each token.

Everything but log pi is a constant here, so the loss of a batch needs no autograd graph of its own: the trainer backpropagates
`slope . log pi` through the model, and `slope` is computed below in float64 with prefix sums over segments and leaves.

Token t of segment s, leaves l of s, advantage A, weights c(s) / Z, leaf factors u_l (1, or 1 / |path of l| under sequence_mean):
  token ratio      r_t = pi / pi_old                      J_t = sum_l (c / K) u_l min(r_t A, clip(r_t) A)
  leaf path (GSPO) s_l = exp(mean over the path of log r), in its token form sg[s_l] pi / sg[pi]
                                                          J_t = sum_l (c / K) u_l min(s_l A, clip(s_l) A)
A is A_s, or the leaf's own A_l under credit=leaf (the flattened loss, where copies of one token may clip on opposite sides).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from treeadv.config import LearnerConfig, SamplingConfig
from treeadv.errors import BadInput
from treeadv.forest import Forest
from treeadv.learning import correction
from treeadv.learning.advantage import Array, advantages, leaf_advantages, leaf_sum, path_sum
from treeadv.learning.correction import Mismatch, segment_sum
from treeadv.presets import AdvantageSpec, build_advantage


@dataclass(frozen=True, slots=True)
class Objective:
    """What a step minimises. `kl` weighs KL(pi || reference) by the estimator k3; `room`, the tokens that a forest may have (its leaf
    budget times the tokens of a rollout), divides under normaliser=constant."""

    spec: AdvantageSpec
    correction: correction.Kind = "none"
    kl: float = 0.0
    room: int = 1


def build_objective(learner: LearnerConfig, sampling: SamplingConfig) -> Objective:
    """What a configuration asks for. `BadInput` for a preset that there is not, and for a clip or a leaf-path ratio that would do nothing:
    a correction other than none holds the ratio at 1."""
    spec = build_advantage(learner.preset, learner.advantage)
    if learner.correction != "none":
        idle = "the ratio of a leaf path (GSPO)" if spec.ratio == "leaf_path" else "learner.advantage.clip"
        if spec.ratio == "leaf_path" or learner.advantage.clip is not None:
            raise BadInput(
                f"learner.correction={learner.correction}: holds the ratio at 1, where {idle} does nothing; with "
                f"learner.preset={learner.preset} set learner.correction=none, which takes the clipped ratio to the behaviour policy"
            )
    return Objective(spec, learner.correction, learner.kl, sampling.leaves * sampling.max_tokens)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one forest. `slope` [T] is d loss / d log pi(t); `clipped` and `masked` count tokens (shares of a token's leaves add up)."""

    loss: float
    slope: Array
    clipped: float
    masked: float
    mismatch: Mismatch


def scales(forests: Sequence[Forest], o: Objective) -> list[float]:
    """1/Z for each forest, over all forests of the step (on all ranks).

    Leaves that were not judged count nowhere.
    token_mean: Z = sum of c(s) |s| over the step. sequence_mean: the mean over the forest's leaves, then over forests.
    constant: `room` for each forest, whatever it came to.
    """
    forests = [f.judged_part() for f in forests]
    if o.spec.normaliser == "token_mean":
        total = sum(float(advantages(f, o.spec)[1] @ f.lengths) for f in forests)
        return [1.0 / total] * len(forests)
    return [1.0 / (len(forests) * (o.room if o.spec.normaliser == "constant" else f.leaves)) for f in forests]


def evaluate(f: Forest, o: Objective, scale: float, logp: Array, reference: Array | None = None) -> Outcome:
    """Loss of one graded forest at log pi = `logp` [T], with its derivative. Tokens without a judged leaf below have slope 0.

    The old policy of the ratio is the behaviour policy without a correction, else the proximal policy. With one update a batch that is
    the current one: the ratio is 1 and the correction carries all of the mismatch.
    """
    if not f.judged.all():
        tokens = np.repeat(f.judged_below, f.lengths)
        outcome = evaluate(f.judged_part(), o, scale, logp[tokens], None if reference is None else reference[tokens])
        slope = np.zeros(f.tokens)
        slope[tokens] = outcome.slope
        return replace(outcome, slope=slope)
    behaviour = f.logprob.astype(np.float64)
    old = behaviour if o.correction == "none" else logp
    weights = correction.correct(o.correction, f, old - behaviour)
    token = np.where(np.exp(behaviour) > o.spec.max_prob, 0.0, weights.token)
    gain = _Gain(f, o.spec, scale)
    with np.errstate(over="ignore", invalid="ignore"):  # a ratio without bound makes a loss that the trainer refuses
        value, slope, clipped = _clipped(f, o.spec, gain, weights.leaf, logp - old)
    loss, slope = -float(token @ value), -token * slope
    if o.kl:
        assert reference is not None
        d = reference - logp
        mass = o.kl * np.repeat(gain.total(np.ones(f.leaves)), f.lengths)
        loss += float(mass @ (np.exp(d) - d - 1.0))  # k3 of KL(pi || reference)
        slope = slope + mass * (1.0 - np.exp(d))
    return Outcome(loss, slope, clipped, float((token == 0).sum()), correction.mismatch(logp - behaviour))


class _Gain:
    """sum over the leaves l of a segment of (c / K / Z) u_l A x_l, for the positive and the negative advantages apart."""

    def __init__(self, f: Forest, spec: AdvantageSpec, scale: float) -> None:
        A, c = advantages(f, spec)
        self.f, self.A, self.share = f, A, scale * c / f.leaf_count
        self.own = leaf_advantages(f, spec) if spec.credit == "leaf" else None
        length = path_sum(f, f.lengths)[f.leaf_segment]
        self.u = 1.0 / length if spec.normaliser == "sequence_mean" else np.ones(f.leaves)

    def total(self, x: Array) -> Array:
        """[S] the same sum without advantages: how much a token of each segment weighs."""
        return self.share * leaf_sum(self.f, self.u * x)

    def positive(self, x: Array) -> Array:
        return np.maximum(self.A, 0) * self.total(x) if self.own is None else self.total(np.maximum(self.own, 0) * x)

    def negative(self, x: Array) -> Array:
        return np.minimum(self.A, 0) * self.total(x) if self.own is None else self.total(np.minimum(self.own, 0) * x)


def _clipped(f: Forest, spec: AdvantageSpec, gain: _Gain, leaf: Array, log_r: Array) -> tuple[Array, Array, float]:
    """(value [T], derivative [T], clipped tokens) of the surrogate: for A > 0 min(x, 1 + high), for A < 0 max(x, 1 - low) times A."""
    low, high = 1.0 - spec.clip[0], 1.0 + spec.clip[1]
    if spec.ratio == "token":
        r = np.exp(log_r)
        up, down = (np.repeat(g(leaf), f.lengths) for g in (gain.positive, gain.negative))
        over, under = r > high, r < low
        value = up * np.minimum(r, high) + down * np.maximum(r, low)
        return value, r * (up * ~over + down * ~under), float(((over & (up > 0)) | (under & (down < 0))).sum())
    s = np.exp(path_sum(f, segment_sum(f, log_r))[f.leaf_segment] / path_sum(f, f.lengths)[f.leaf_segment])
    over, under = s > high, s < low
    value = gain.positive(leaf * np.minimum(s, high)) + gain.negative(leaf * np.maximum(s, low))
    slope = gain.positive(leaf * s * ~over) + gain.negative(leaf * s * ~under)
    if gain.own is None:
        hit = np.where(gain.A > 0, leaf_sum(f, over), leaf_sum(f, under) * (gain.A < 0))
    else:
        hit = leaf_sum(f, np.where(gain.own > 0, over, under & (gain.own < 0)))
    return np.repeat(value, f.lengths), np.repeat(slope, f.lengths), float((hit / f.leaf_count) @ f.lengths)
