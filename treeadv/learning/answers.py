"""Computes figures of the answers in a batch of graded forests: lengths, truncation, outcomes, rewards by task
family.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from treeadv.forest import Finish, Forest, Verdict

FAMILIES = 16  # families of a batch that have a reward of their own; all other families share the name `OTHER`
OTHER = "other"
_NUMBERS = re.compile(r"([-_:/.]\d+)+$")


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerFigures:
    """The figures of the answers of a batch.

    An answer is a leaf that the engine did not lose. Its length is the number of tokens from the root to its end,
    including the tokens that it shares."""

    answer_tokens: float  # mean length
    answer_tokens_by_verdict: dict[str, float]  # mean length of the answers with a verdict
    truncated: float  # share of the answers that reached the token limit
    mixed: float  # share of the forests with both a verified answer and a judged answer that is not verified
    reward_by_family: dict[str, float]  # mean reward of the judged leaves by family (`family_of`)


def answer_figures(forests: Sequence[Forest]) -> AnswerFigures:
    """Return the figures of a batch. Every forest has a judged leaf, so it has an answer."""
    lengths, finishes, verdicts = (np.concatenate(x) for x in zip(*map(_leaves, forests), strict=True))
    kept = finishes != Finish.ABORT
    rewards: dict[str, list[float]] = defaultdict(list)
    for f in forests:
        rewards[family_of(f.prompt_id)] += f.reward[f.judged].tolist()
    common = sorted(rewards, key=lambda name: (-len(rewards[name]), name))
    for name in common[FAMILIES:]:
        rewards[OTHER] += rewards.pop(name)
    return AnswerFigures(
        answer_tokens=float(lengths[kept].mean()),
        answer_tokens_by_verdict={
            Verdict(v).name.lower(): float(lengths[kept & (verdicts == v)].mean()) for v in np.unique(verdicts[kept])
        },
        truncated=float((finishes[kept] == Finish.LENGTH).mean()),
        mixed=float(np.mean([_is_mixed(f) for f in forests])),
        reward_by_family={name: float(np.mean(values)) for name, values in sorted(rewards.items())},
    )


def family_of(prompt_id: str) -> str:
    """Return the family of a prompt: its id without the numbers at the end.

    The ids of generated problems and of rows of data begin with the name of their family, file or data set.

    >>> family_of("chain_sum-0-17"), family_of("train-5"), family_of("7")
    ('chain_sum', 'train', 'other')
    """
    name = _NUMBERS.sub("", prompt_id)
    return OTHER if name.isdigit() or not name else name


def _leaves(f: Forest) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the length, the finish and the verdict of each leaf of a forest."""
    return f.offset[f.leaf_segment] + f.lengths[f.leaf_segment], f.finish, f.verdict


def _is_mixed(f: Forest) -> bool:
    verified = f.verdict[f.judged] == Verdict.VERIFIED
    return bool(verified.any() and not verified.all())
