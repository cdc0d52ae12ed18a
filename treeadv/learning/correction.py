"""The corrections for tokens that another policy drew. A correction is a weight that depends on w = pi_proximal / mu.

mu is the behaviour policy, whose log-probabilities the engine reports. pi_proximal is the learner's policy when the
batch arrived. The two policies differ for two reasons: the learner's weights are newer, and engine and learner compute
in different ways. A correction is a product of factors. Each factor is 1 at w = 1. A new correction is an entry of
`CORRECTIONS`, or a `Correction` that `learner.correction=module:NAME` names."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from treeadv.errors import BadInput
from treeadv.extensions import load_extension
from treeadv.forest import Forest
from treeadv.learning.advantage import Array, path_sum

_MAX_LOG = 20.0  # exponents are clipped to +-20, because e^20 = 5e8 acts like infinity but gives no NaN


@dataclass(frozen=True, kw_only=True)
class Factor:
    """A function of w. The weight does not change inside `bounds` and is truncated or masked outside.

    `level` chooses the weight: w of a token, or the product or the geometric mean of w along the path of a leaf."""

    level: Literal["token", "path_product", "path_mean"]
    outside: Literal["truncate", "mask"]  # `truncate` gives the nearest bound, `mask` gives 0
    bounds: tuple[float, float]
    mask_only: bool = False  # if True, the result inside the bounds is 1 instead of the weight

    def __call__(self, log_w: Array) -> Array:
        w = exp(log_w)
        low, high = self.bounds
        if self.outside == "truncate":
            return np.clip(w, low, high)
        return np.where((w >= low) & (w <= high), 1.0 if self.mask_only else w, 0.0)


@dataclass(frozen=True, kw_only=True)
class Correction:
    """A product of factors. The objective clips the ratio of the current policy to the policy `ratio_to`."""

    factors: tuple[Factor, ...] = ()
    ratio_to: Literal["proximal", "behaviour"] = "proximal"

    @property
    def needs_path(self) -> bool:
        """Return whether the weight of a token depends on other tokens of its paths."""
        return any(factor.level != "token" for factor in self.factors)


_TIS = Factor(level="token", outside="truncate", bounds=(0.0, 2.0))
_GEOMETRIC = Factor(level="path_mean", outside="mask", bounds=(0.99, 1.01), mask_only=True)

NO_CORRECTION = Correction()

CORRECTIONS: dict[str, Correction] = {
    "none": NO_CORRECTION,
    "bypass": Correction(ratio_to="behaviour"),  # original PPO, whose clipped ratio is to the behaviour policy
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
    """Return the correction called `name`, an entry of `CORRECTIONS` or `module:NAME`.

    `bounds` replaces the bounds of the first factor. Raises `BadInput` if no such correction exists, or if the bounds
    do not contain 1.
    """
    found: object = CORRECTIONS.get(name)
    if found is None:
        found = load_extension("learner.correction", name, {known: known for known in CORRECTIONS})
    if not isinstance(found, Correction):
        raise BadInput(
            f"learner.correction={name} is a {type(found).__name__}, not a treeadv.learning.correction.Correction"
        )
    if bounds is None:
        return found
    if not found.factors:
        raise BadInput(
            f"learner.correction_bounds={list(bounds)}: learner.correction={name} has no bounds; remove the option"
        )
    if not bounds[0] <= 1 <= bounds[1]:
        raise BadInput(
            f"learner.correction_bounds={list(bounds)} must contain 1, the weight of a token where both policies agree"
        )
    first, *others = found.factors
    return replace(found, factors=(replace(first, bounds=bounds), *others))


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The weights of a forest under a correction.

    `token` [T] multiplies the loss of a token. `leaf` [L] multiplies the part of a leaf in the loss of the tokens on
    its path. A shared token gets the mean over its leaves."""

    token: Array
    leaf: Array


def correct(correction: Correction, f: Forest, log_w: Array) -> Weights:
    """Return the weights of a forest, given `log_w` [T]."""
    token, leaf = np.ones(f.tokens), np.ones(f.leaves)
    for factor in correction.factors:
        if factor.level == "token":
            token = token * factor(log_w)
        else:
            leaf = leaf * factor(_on_paths(f, log_w, mean=factor.level == "path_mean"))
    return Weights(token=token, leaf=leaf)


def _on_paths(f: Forest, x: Array, mean: bool) -> Array:
    """Return [L]: the sum of x [T] along the path of each leaf, or the mean if `mean`."""
    total = path_sum(f, segment_sum(f, x))[f.leaf_segment]
    return total / path_sum(f, f.lengths)[f.leaf_segment] if mean else total


def path_mean(f: Forest, x: Array) -> Array:
    """Return [L]: the mean of x [T] along the path of each leaf."""
    return _on_paths(f, x, mean=True)


def segment_sum(f: Forest, x: Array) -> Array:
    """Return [S]: the sum of x [T] over the tokens of each segment."""
    return np.add.reduceat(x, f.start[:-1])


def exp(x: Array) -> Array:
    """Return e^x with the exponent clipped to +-20."""
    return np.exp(np.clip(x, -_MAX_LOG, _MAX_LOG))
