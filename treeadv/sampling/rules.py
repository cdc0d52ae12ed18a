"""The fork rules. A rule decides at each prefix whether the chain forks there. `RULES` lists the rules by name.

A rule is *predictable* when it depends on the prefix only. Forking on a predictable rule leaves the flow-weighted
estimator unbiased (docs/method.md, "What is unbiased, and why"). A rule that reads the drawn token is not predictable,
and every forest records that.

A new rule is a subclass of `ForkRule`, or of `search_rule.SearchRule` if it forks whole paths. `sampling.rule` names it
as `module:Name`, or `RULES` lists it (docs/extending.md).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from pydantic import ValidationError

from treeadv.errors import BadInput
from treeadv.extensions import load_extension
from treeadv.section import Positive, Section, Share, faults
from treeadv.seeds import uniform


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefix:
    """The state of a chain before its next token.

    `tau` and `logprob` are None unless the rule declares that it reads them.
    """

    entropy: float  # entropy in nats of the distribution that the next token is drawn from
    gap: int  # tokens of the current segment so far
    depth: int  # forks above the current segment
    position: int  # tokens of the rollout so far
    budget: int  # leaves that the current segment may have below it
    seed: int  # seed of the chain
    tau: float | None  # fork threshold in nats; set for a rule with `uses_threshold`
    logprob: float | None  # log-probability of the token that follows; set for a rule that is not `predictable`


class ForkRule(Section, ABC):
    """A fork rule. Its fields are its options, which `sampling.rule_options` sets."""

    predictable: ClassVar[bool]  # whether `fires` depends only on the prefix
    uses_threshold: ClassVar[bool] = False  # whether `fires` reads `Prefix.tau`
    ever_fires: ClassVar[bool] = True  # if False, the leaf budget of every tree goes to new roots at once

    @property
    def needs_rewards(self) -> bool:
        """Return whether the rule reads rewards of finished leaves while a forest grows."""
        return False

    @abstractmethod
    def fires(self, prefix: Prefix) -> bool:
        """Return whether the chain forks at `prefix`. The caller has checked the guards (`sampling.forking`)."""


class Entropy(ForkRule):
    """The rule that forks if the entropy of the next token is above the threshold."""

    predictable = True
    uses_threshold = True

    def fires(self, prefix: Prefix) -> bool:
        assert prefix.tau is not None
        return prefix.entropy > prefix.tau


class Never(ForkRule):
    """The rule that never forks, so the rollouts are flat."""

    predictable = True
    ever_fires = False

    def fires(self, prefix: Prefix) -> bool:
        return False


class Surprisal(ForkRule):
    """The rule that forks if the surprisal of the drawn token is above the threshold (TreeRL, arXiv 2506.11902).

    This rule is biased. It exists for comparisons.
    """

    predictable = False
    uses_threshold = True

    def fires(self, prefix: Prefix) -> bool:
        assert prefix.tau is not None
        assert prefix.logprob is not None
        return -prefix.logprob > prefix.tau


class FixedGap(ForkRule):
    """The rule that forks every `gap` tokens."""

    predictable = True
    gap: Positive = 8

    def fires(self, prefix: Prefix) -> bool:
        return prefix.gap >= self.gap


class Random(ForkRule):
    """The rule that forks at each token with probability `probability`. The seed of the chain fixes the draws."""

    predictable = True
    probability: Share = 0.1

    def fires(self, prefix: Prefix) -> bool:
        return uniform(prefix.seed, "fork", prefix.position) < self.probability


RULES = {
    "entropy": f"{__name__}:{Entropy.__name__}",
    "none": f"{__name__}:{Never.__name__}",
    "fixed": f"{__name__}:{FixedGap.__name__}",
    "random": f"{__name__}:{Random.__name__}",
    "surprisal": f"{__name__}:{Surprisal.__name__}",
    "search": "treeadv.sampling.search_rule:Search",
}


def build_rule(name: str, options: Mapping[str, object]) -> ForkRule:
    """Build the rule that `sampling.rule` names with the options of `sampling.rule_options`. Raises `BadInput`."""
    found = load_extension("sampling.rule", name, RULES)
    if not (isinstance(found, type) and issubclass(found, ForkRule)):
        raise BadInput(f"sampling.rule={name} is not a subclass of treeadv.sampling.rules.ForkRule")
    if not isinstance(getattr(found, "predictable", None), bool):
        raise BadInput(f"sampling.rule={name}: the class must set `predictable` to True or False")
    if found.__abstractmethods__:
        missing = ", ".join(f"`{method}`" for method in sorted(found.__abstractmethods__))
        raise BadInput(f"sampling.rule={name}: the class must define {missing}")
    try:
        return found(**options)
    except ValidationError as e:
        known = ", ".join(found.model_fields) or "none"
        raise BadInput(f"sampling.rule_options of rule {name}: {faults(e)} (options: {known})") from e
