"""The construction of a forest from its tree, from flat rollouts, or from rows of a data set."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from treeadv.forest.labels import Finish, Ints, Verdict
from treeadv.forest.prefixes import prefix_tree


class Construction:
    """The class methods of `Forest` that make a forest."""

    if TYPE_CHECKING:

        def __init__(self, **arrays: Any) -> None: ...
        def check(self) -> Self: ...
        def with_rewards(self, reward: Sequence[float], verdict: Sequence[int], detail: Sequence[str] = ()) -> Self: ...

    @classmethod
    def assemble(
        cls,
        *,
        prompt: npt.ArrayLike,
        parent: npt.ArrayLike,
        lengths: npt.ArrayLike,
        token: npt.ArrayLike,
        logprob: npt.ArrayLike,
        entropy: npt.ArrayLike | None = None,
        version: npt.ArrayLike = 0,
        finish: npt.ArrayLike = Finish.STOP,
        arity: npt.ArrayLike | None = None,
        budget: npt.ArrayLike | None = None,
        forest_id: str = "",
        prompt_id: str = "",
        gold: str = "",
        verifier: str = "math",
        meta: str = "",
        rule: str = "none",
        predictable: bool = True,
        tau: float = math.nan,
        temperature: float = 1.0,
    ) -> Self:
        """Make an ungraded forest from its tree.

        `parent` [S] holds the parents of the segments in depth-first order, -1 for a root. `lengths` [S] holds the
        numbers of tokens. `token`, `logprob`, `entropy` (0 where unknown) and `version` have the shape [T], and
        `finish` has the shape [L]. A scalar holds for all entries. `arity` [S] defaults to the number of children that
        exist. `budget` [S] defaults to the number of leaves below. Raises `BadForest` if an invariant does not hold.

        >>> tree = Forest.assemble(prompt=[1], parent=[-1, 0, 0], lengths=[2, 1, 3], token=[5] * 6, logprob=[-1.0] * 6)
        >>> tree.arity.tolist(), tree.leaf_segment.tolist()
        ([2, 0, 0], [1, 2])
        """
        up = np.asarray(parent, np.int32)
        children = np.bincount(up[up >= 0], minlength=len(up)).astype(np.int32)
        ends = np.flatnonzero(children == 0).astype(np.int32)
        T, L = len(np.asarray(token)), len(ends)
        return cls(
            forest_id=forest_id,
            prompt_id=prompt_id,
            gold=gold,
            verifier=verifier,
            meta=meta,
            rule=rule,
            predictable=predictable,
            tau=tau,
            temperature=temperature,
            prompt=np.asarray(prompt, np.int32),
            parent=up,
            start=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32),
            tree=(np.cumsum(up == -1) - 1).astype(np.int32),
            arity=children if arity is None else np.asarray(arity, np.int32),
            budget=_leaves_below(up) if budget is None else np.asarray(budget, np.int32),
            token=np.asarray(token, np.int32),
            logprob=np.asarray(logprob, np.float32),
            entropy=np.zeros(T, np.float32) if entropy is None else np.asarray(entropy, np.float32),
            version=np.full(T, version, np.int32),
            leaf_segment=ends,
            finish=np.full(L, finish, np.int8),
            reward=np.full(L, np.nan, np.float32),
            verdict=np.full(L, Verdict.UNGRADED, np.int8),
        ).check()

    @classmethod
    def from_rollouts(
        cls,
        prompt: npt.ArrayLike,
        sequences: Sequence[Sequence[int]],
        logprobs: Sequence[Sequence[float]],
        rewards: Sequence[float] | None = None,
        *,
        verdicts: Sequence[Verdict] | None = None,
        entropies: Sequence[Sequence[float]] | None = None,
        finish: Sequence[Finish] | Finish = Finish.STOP,
        versions: Sequence[Sequence[int]] | int = 0,
        **facts: Any,
    ) -> Self:
        """Make a forest of flat rollouts of one prompt by merging equal prefixes.

        A sequence has at least one token. `logprobs`, `entropies` and `versions` have one entry for each token of each
        sequence. A single version holds for all tokens. `rewards` has one entry for each sequence; without `rewards`
        the forest is not graded. `verdicts` defaults to VERIFIED for a reward above 0 and WRONG otherwise. Leaf i of
        the forest is sequence order[i] of `prefix_order(sequences)`.

        A merged token keeps the log-probability and entropy of the first sequence that has it, and the oldest version.
        The last token of a sequence is never merged, so every sequence ends in a separate segment. `facts` are further
        arguments of `assemble`, such as `forest_id`. The forest is marked as not predictable, because its forks depend
        on the tokens drawn (docs/method.md). Raises `BadForest` if an invariant does not hold.

        >>> sequences = [[5, 6, 7], [9], [5, 6, 8]]
        >>> forest = Forest.from_rollouts([1], sequences, [[-1.0] * len(s) for s in sequences], [1.0, 0.0, 0.0])
        >>> forest.trees, forest.lengths.tolist(), forest.reward.tolist()
        (2, [2, 1, 1, 1], [1.0, 0.0, 0.0])
        """
        if not len(sequences) or not all(len(s) for s in sequences):
            raise ValueError("each rollout needs at least one token, and a forest at least one rollout")
        for name, given in (("logprobs", logprobs), ("entropies", entropies), ("versions", versions)):
            if isinstance(given, Sequence) and [len(x) for x in given] != [len(s) for s in sequences]:
                raise ValueError(f"{name} needs one entry for each token of each sequence")
        parent, spans, order, below = prefix_tree([list(s) for s in sequences])
        ends = [Finish(finish)] * len(sequences) if isinstance(finish, Finish) else finish
        forest = cls.assemble(
            prompt=prompt,
            parent=parent,
            lengths=[b - a for _, a, b in spans],
            token=[t for i, a, b in spans for t in sequences[i][a:b]],
            logprob=[x for i, a, b in spans for x in logprobs[i][a:b]],
            entropy=[x for i, a, b in spans for x in entropies[i][a:b]] if entropies else None,
            finish=[ends[i] for i in order],
            version=versions if isinstance(versions, int) else _oldest(versions, spans, below),
            **{"rule": "merged", "predictable": False, **facts},
        )
        if rewards is None:
            return forest
        verdicts = verdicts or [Verdict.VERIFIED if r > 0 else Verdict.WRONG for r in rewards]
        return forest.with_rewards([rewards[i] for i in order], [verdicts[i] for i in order])

    @classmethod
    def from_dicts(cls, rows: Sequence[Mapping[str, Any]], **facts: Any) -> list[Self]:
        """Make one forest for each prompt of `rows`, in the order in which the prompts appear.

        A row is one rollout. `prompt_ids` and `completion_ids` hold token ids. `logprobs` holds the log-probability of
        each token of the completion under the policy that drew it. `reward` is the reward. Either all rows have a
        reward or no row has one. Raises `ValueError` for a row without one of the keys, and `BadForest` if an invariant
        does not hold.

        >>> drawn = {"prompt_ids": [1], "logprobs": [-1.0, -0.7]}
        >>> rows = [drawn | {"completion_ids": [5, k], "reward": k % 2} for k in (6, 7)]
        >>> [forest.leaves for forest in Forest.from_dicts(rows)]
        [2]
        """
        graded = any(row.get("reward") is not None for row in rows)
        groups = group_by_prompt(rows, ("prompt_ids", "completion_ids", "logprobs") + ("reward",) * graded)
        return [
            cls.from_rollouts(
                prompt,
                [rows[i]["completion_ids"] for i in members],
                [rows[i]["logprobs"] for i in members],
                [float(rows[i]["reward"]) for i in members] if graded else None,
                **facts,
            )
            for prompt, members in groups
        ]


def group_by_prompt(rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> list[tuple[list[int], list[int]]]:
    """Return (prompt, indices of its rows) for each prompt, in the order in which the prompts appear. Raises
    `ValueError` for a row without one of the keys."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, row in enumerate(rows):
        missing = [key for key in keys if row.get(key) is None]
        if missing:
            raise ValueError(f"row {i} has no {missing[0]}")
        groups.setdefault(tuple(row["prompt_ids"]), []).append(i)
    return [(list(prompt), members) for prompt, members in groups.items()]


def _oldest(versions: Sequence[Sequence[int]], spans: list[tuple[int, int, int]], below: list[list[int]]) -> list[int]:
    """Return [T]: the oldest version of each merged token over the sequences that share the token."""
    shared = zip(below, spans, strict=True)
    return [min(versions[i][t] for i in members) for members, (_, a, b) in shared for t in range(a, b)]


def _leaves_below(parent: Ints) -> Ints:
    """Return [S]: the number of leaves below each segment. A leaf has the number 1."""
    inner = set(parent.tolist())
    out = np.array([int(s not in inner) for s in range(len(parent))], np.int32)
    for s in range(len(parent) - 1, 0, -1):
        if 0 <= parent[s] < s:
            out[parent[s]] += out[s]
    return out
