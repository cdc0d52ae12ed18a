"""Corrections for tokens that another policy drew: weights made of w = pi_proximal / mu.

mu is the behaviour policy, as the engine reported it. pi_proximal is the learner's policy when the batch arrived.
They differ because the weights are newer and because engine and learner compute in different ways. A correction is a
product of factors; each is the identity at w = 1. A new one is an entry of `CORRECTIONS`, or a `Correction` that
`learner.correction=module:NAME` names."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from treeadv.errors import BadInput
from treeadv.extensions import load_extension
from treeadv.forest import Forest
from treeadv.learning.advantage import Array, path_sum

_MAX_LOG = 20.0  # exponents are cut at +-20: 5e8 has the same effect as infinity and gives no NaN


@dataclass(frozen=True, kw_only=True)
class Factor:
    """A function of w, of a token or of a leaf's path: the weight inside `bounds`, and what becomes of it outside."""

    # W, its product along the path, or its geometric mean along it
    level: Literal["token", "path_product", "path_mean"]
    outside: Literal["truncate", "mask"]  # the nearest bound, or 0
    bounds: tuple[float, float]
    mask_only: bool = False  # 1 inside the bounds instead of the weight

    def __call__(self, log_w: Array) -> Array:
        w = exp(log_w)
        low, high = self.bounds
        if self.outside == "truncate":
            return np.clip(w, low, high)
        return np.where((w >= low) & (w <= high), 1.0 if self.mask_only else w, 0.0)


@dataclass(frozen=True, kw_only=True)
class Correction:
    """A product of factors. `ratio_to` is the policy whose ratio the objective clips."""

    factors: tuple[Factor, ...] = ()
    ratio_to: Literal["proximal", "behaviour"] = "proximal"

    @property
    def needs_path(self) -> bool:
        """Whether a token's weight depends on other tokens of its paths."""
        return any(factor.level != "token" for factor in self.factors)


_TIS = Factor(level="token", outside="truncate", bounds=(0.0, 2.0))
_GEOMETRIC = Factor(level="path_mean", outside="mask", bounds=(0.99, 1.01), mask_only=True)

NO_CORRECTION = Correction()

CORRECTIONS: dict[str, Correction] = {
    "none": NO_CORRECTION,
    "bypass": Correction(ratio_to="behaviour"),  # PPO as first written: the clipped ratio is to the behaviour policy
    "tis": Correction(factors=(_TIS,)),  # truncated importance sampling (Yao et al. 2025), cap as in verl
    "sequence_tis": Correction(factors=(Factor(level="path_product", outside="truncate", bounds=(0.0, 2.0)),)),
    "icepop": Correction(factors=(Factor(level="token", outside="mask", bounds=(0.5, 5.0)),)),  # bounds as in verl
    "decoupled": Correction(factors=(Factor(level="token", outside="mask", bounds=(0.0, 5.0)),)),  # cap as in AReaL
    "sequence_mask": Correction(
        factors=(Factor(level="path_product", outside="mask", bounds=(0.5, 2.0), mask_only=True), _TIS)
    ),
    "geometric_mask": Correction(factors=(_GEOMETRIC, _TIS)),
}


def find_correction(name: str, bounds: tuple[float, float] | None = None) -> Correction:
    """The correction of that name, or the `Correction` that `module:NAME` names; `bounds` replaces those of its
    first factor.

    Raises `BadInput` if there is none, or if the bounds do not contain 1.
    """
    found: object = CORRECTIONS.get(name)
    if found is None:
        found = load_extension("learner.correction", name, {known: known for known in CORRECTIONS})
    if not isinstance(found, Correction):
        raise BadInput(
            f"learner.correction={name}: a {type(found).__name__}, not a treeadv.learning.correction.Correction"
        )
    if bounds is None:
        return found
    if not found.factors:
        raise BadInput(
            f"learner.correction_bounds={list(bounds)}: learner.correction={name} has no bounds; remove them"
        )
    if not bounds[0] <= 1 <= bounds[1]:
        raise BadInput(
            f"learner.correction_bounds={list(bounds)}: must contain 1, the weight of a token of equal policies"
        )
    first, *others = found.factors
    return replace(found, factors=(replace(first, bounds=bounds), *others))


@dataclass(frozen=True, kw_only=True)
class Weights:
    """`token` [T] multiplies the loss of a token, `leaf` [L] what a leaf adds to its tokens (a shared token gets the
    mean)."""

    token: Array
    leaf: Array


def correct(correction: Correction, f: Forest, log_w: Array) -> Weights:
    """The weights of a forest for log w [T]."""
    token, leaf = np.ones(f.tokens), np.ones(f.leaves)
    for factor in correction.factors:
        if factor.level == "token":
            token = token * factor(log_w)
        else:
            leaf = leaf * factor(_on_paths(f, log_w, mean=factor.level == "path_mean"))
    return Weights(token=token, leaf=leaf)


def _on_paths(f: Forest, x: Array, mean: bool) -> Array:
    """[L] the sum of x [T] along the path of each leaf, or its mean."""
    total = path_sum(f, segment_sum(f, x))[f.leaf_segment]
    return total / path_sum(f, f.lengths)[f.leaf_segment] if mean else total


def path_mean(f: Forest, x: Array) -> Array:
    """[L] the mean of x [T] along the path of each leaf."""
    return _on_paths(f, x, mean=True)


def segment_sum(f: Forest, x: Array) -> Array:
    """[S] the sum of x [T] over the tokens of each segment."""
    return np.add.reduceat(x, f.start[:-1])


def exp(x: Array) -> Array:
    """e^x with the exponent cut at +-20."""
    return np.exp(np.clip(x, -_MAX_LOG, _MAX_LOG))
