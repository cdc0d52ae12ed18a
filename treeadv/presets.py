"""Advantage presets by name. A preset holds the settings that turn the rewards of a forest into a loss.

A new preset is one entry of `PRESETS`, or a `Preset` in any module with the name `learner.preset=module:NAME`.
docs/method.md defines each setting and states its bias."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from treeadv.errors import BadInput
from treeadv.extensions import load_extension
from treeadv.section import NonNegative, Section, faults

Credit = Literal["segment", "leaf"]
SegmentValue = Literal["leaf_mean", "child_mean"]
Baseline = Literal[
    "forest_mean", "leaf_loo", "leave_subtree_out", "sibling_loo", "parent_fork", "segment_mean", "prefix_groups",
    "forest_and_tree", "none",
]  # fmt: skip
Tree = Literal["drawn", "merged"]
Scale = Literal["std_unbiased", "std_pop", "whiten", "none"]
LeafWeight = Literal["uniform", "flow"]
TokenWeight = Literal["once", "per_leaf", "sqrt", "flow"]
LossNormaliser = Literal["token_mean", "sequence_mean", "constant"]
Ratio = Literal["token", "leaf_path"]
Surrogate = Literal["clip", "cispo"]
Probability = Annotated[float, Field(gt=0, le=1)]
Clip = tuple[NonNegative, NonNegative]

_LEAF_BASELINES = ("forest_mean", "leaf_loo", "prefix_groups", "forest_and_tree", "none")
_SEGMENT_BASELINES = (
    "forest_mean", "leaf_loo", "leave_subtree_out", "sibling_loo", "parent_fork", "segment_mean", "none"
)  # fmt: skip


class AdvantageSpec(Section):
    """All settings that turn rewards into a loss. docs/method.md says which settings are biased."""

    tree: Tree = "drawn"  # merged: the tree is built after drawing, from equal prefixes of the leaves (TEMPO)
    # segment: the leaves of a segment share one advantage. leaf: each leaf keeps its own, also on shared tokens.
    credit: Credit = "segment"
    value: SegmentValue = "leaf_mean"
    baseline: Baseline = "forest_mean"
    local: float = 0.0  # adds local * (A(s) - A(parent)), the change at the fork (TreeRL)
    branch_td: float = 0.0  # adds branch_td * (V(s) - V(parent)) at the first token of a segment (TEMPO)
    scale: Scale = "std_unbiased"
    eps: float = 1e-6
    leaf_weight: LeafWeight = "uniform"  # weight of a leaf in the mean and the standard deviation
    weight: TokenWeight = "once"
    normaliser: LossNormaliser = "token_mean"
    ratio: Ratio = "token"
    surrogate: Surrogate = "clip"
    clip: Clip = (0.2, 0.2)  # distance of the bounds of the ratio below and above 1
    dual_clip: NonNegative = 3.0  # above this ratio a negative advantage has no gradient; 0 means no limit
    max_prob: Probability = 1.0  # tokens that the behaviour policy drew with a higher probability are not trained (SPO)

    @model_validator(mode="after")
    def _coherent(self) -> AdvantageSpec:
        allowed = _LEAF_BASELINES if self.credit == "leaf" else _SEGMENT_BASELINES
        if self.baseline not in allowed:
            raise ValueError(
                f"baseline={self.baseline} does not go with credit={self.credit}: choose {', '.join(allowed)}"
            )
        if self.credit == "leaf" and (self.local or self.weight != "per_leaf"):
            raise ValueError("credit=leaf is the flattened form: it needs weight=per_leaf and local=0")
        if self.branch_td and self.credit != "leaf":
            raise ValueError("branch_td is added to the leaf's own advantage: it needs credit=leaf")
        if self.branch_td and self.scale == "whiten":
            raise ValueError("branch_td is divided by the spread of the rewards: it does not go with scale=whiten")
        if self.credit == "segment" and self.scale == "whiten":
            raise ValueError("scale=whiten is over the flattened tokens: it needs credit=leaf")
        if self.dual_clip and self.dual_clip <= 1 + self.clip[1]:
            raise ValueError(
                f"dual_clip={self.dual_clip:g} must be above 1 + clip[1] = {1 + self.clip[1]:g}, or 0 for none"
            )
        return self


class AdvantageOverrides(Section):
    """Fields of the preset to replace. An unset field keeps the preset's value."""

    tree: Tree | None = Field(None, description="the tree as drawn, or made of the equal prefixes of the leaves")
    credit: Credit | None = Field(None, description="one advantage a segment, or each leaf its own")
    value: SegmentValue | None = Field(
        None, description="value of a segment: mean over its leaves or over its children"
    )
    baseline: Baseline | None = Field(None, description="what the value is compared with")
    local: float | None = Field(None, description="weight of the step from the parent's advantage (TreeRL)")
    branch_td: float | None = Field(None, description="weight of V(s) - V(parent) at a segment's first token (TEMPO)")
    scale: Scale | None = Field(None, description="what the advantage is divided by")
    eps: float | None = Field(None, description="added to the standard deviation")
    leaf_weight: LeafWeight | None = Field(None, description="weight of a leaf in mean and standard deviation")
    weight: TokenWeight | None = Field(None, description="how often the loss counts a token")
    normaliser: LossNormaliser | None = Field(None, description="what the sum over tokens is divided by")
    ratio: Ratio | None = Field(None, description="ratio of the token, or of the leaf's path (GSPO)")
    surrogate: Surrogate | None = Field(None, description="PPO's clipped objective, or CISPO's clipped weight")
    clip: Clip | None = Field(None, description="how far the ratio may go below and above 1")
    dual_clip: NonNegative | None = Field(
        None, description="ratio above which negative advantages are clipped too; 0: none"
    )
    max_prob: Probability | None = Field(
        None, description="tokens that the behaviour policy drew with more than this are not trained (SPO)"
    )


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A named set of all settings, with the kind of rollouts that the settings need."""

    advantage: AdvantageSpec
    flat: bool = False  # for independent rollouts, in which every leaf is a root
    backbone: bool = False  # for trees in which only one path forks

    def sampling(self, leaves: int) -> dict[str, str | int]:
        """Return the values that become the defaults of fields of the section `sampling` with this preset."""
        if self.flat:
            return {"rule": "none", "trees": leaves}
        return {"split": "backbone"} if self.backbone else {}


_FLAT = AdvantageSpec(credit="leaf", weight="per_leaf")
_TREEADV = AdvantageSpec()
_CISPO = {"surrogate": "cispo", "clip": (1.0, 4.0), "dual_clip": 0.0}
_GSPO = {"ratio": "leaf_path", "normaliser": "sequence_mean", "clip": (3e-4, 4e-4)}

PRESETS: dict[str, Preset] = {
    "treeadv": Preset(advantage=_TREEADV),
    "treeadv_gspo": Preset(advantage=_TREEADV.model_copy(update=_GSPO)),
    "treeadv_gspo_per_leaf": Preset(advantage=_TREEADV.model_copy(update={**_GSPO, "weight": "per_leaf"})),
    "treeadv_per_leaf": Preset(advantage=_TREEADV.model_copy(update={"weight": "per_leaf"})),
    "flat_on_forest": Preset(advantage=_FLAT),
    "unbiased": Preset(advantage=AdvantageSpec(
        value="child_mean", baseline="leave_subtree_out", scale="none", leaf_weight="flow", weight="flow",
        normaliser="constant",
    )),
    "seed_rebuttal": Preset(advantage=AdvantageSpec(baseline="segment_mean")),
    "treerl": Preset(advantage=AdvantageSpec(
        baseline="leaf_loo", local=1.0, scale="none", weight="sqrt", normaliser="sequence_mean", clip=(0.2, 0.26)
    )),
    "treepo": Preset(advantage=AdvantageSpec(
        credit="leaf", weight="per_leaf", baseline="prefix_groups", scale="whiten", clip=(0.2, 0.28)
    )),
    "tree_grpo": Preset(advantage=AdvantageSpec(
        credit="leaf", weight="per_leaf", baseline="forest_and_tree", normaliser="sequence_mean"
    )),
    "spo_tree": Preset(advantage=AdvantageSpec(
        value="child_mean", baseline="parent_fork", scale="none", leaf_weight="flow", max_prob=0.9
    )),
    "bpo": Preset(backbone=True, advantage=AdvantageSpec(
        value="child_mean", baseline="sibling_loo", scale="none", leaf_weight="flow", weight="flow",
        normaliser="constant",
    )),
    "tempo": Preset(flat=True, advantage=_FLAT.model_copy(update={"tree": "merged", "branch_td": 1.0})),
    "grpo": Preset(advantage=_FLAT, flat=True),
    "gspo": Preset(advantage=_FLAT.model_copy(update=_GSPO), flat=True),
    "cispo": Preset(advantage=_FLAT.model_copy(update=_CISPO), flat=True),
}  # fmt: skip


def find_preset(name: str) -> Preset:
    """Return the preset `name`. The name is an entry of `PRESETS` or `module:NAME`. Raises `BadInput` for an unknown
    name."""
    if name in PRESETS:
        return PRESETS[name]
    found = load_extension("learner.preset", name, {known: known for known in PRESETS})
    if not isinstance(found, Preset):
        raise BadInput(f"learner.preset={name} is a {type(found).__name__}, not a treeadv.presets.Preset")
    return found


def build_advantage(name: str, overrides: AdvantageOverrides | None = None) -> AdvantageSpec:
    """Return the settings of the preset `name`. The fields that `overrides` sets replace fields of the preset.

    Raises `BadInput` for settings that contradict each other.

    >>> build_advantage("treeadv").weight, build_advantage("treeadv_per_leaf").weight
    ('once', 'per_leaf')
    """
    chosen = find_preset(name).advantage.model_dump()
    replaced = overrides.model_dump(exclude_none=True) if overrides else {}
    try:
        return AdvantageSpec.model_validate(chosen | replaced)
    except ValidationError as e:
        raise BadInput(f"learner.advantage on learner.preset={name}: {faults(e)}") from e
