"""Scores of a model from graded answers: the result of one problem, the score of a set, the scores of all sets."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from treeadv.evaluation.estimates import Estimate, mean_of_means, mean_over, pass_at_k, powers
from treeadv.forest import Finish, Forest, Verdict
from treeadv.jsonl import JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The answers to one problem. The fields hold the verdict, the finish and the number of tokens of each answer.

    An answer that the engine lost before its first token has no entry."""

    verdicts: tuple[int, ...]
    finishes: tuple[int, ...]
    lengths: tuple[int, ...]

    @property
    def correct(self) -> int:
        """Return the number of answers that a verifier verified, including cut answers."""
        return sum(v == Verdict.VERIFIED for v in self.verdicts)

    @property
    def completed(self) -> int:
        """Return the number of answers that the model ended."""
        return sum(f == Finish.STOP for f in self.finishes)

    @property
    def completed_correct(self) -> int:
        """Return the number of answers that the model ended and a verifier verified."""
        pairs = zip(self.verdicts, self.finishes, strict=True)
        return sum(v == Verdict.VERIFIED and f == Finish.STOP for v, f in pairs)


def result_of(forest: Forest) -> Result:
    """Return the result of a graded forest whose leaves share no tokens."""
    return Result(
        verdicts=tuple(map(int, forest.verdict)), finishes=tuple(map(int, forest.finish)),
        lengths=tuple(int(n) for n in forest.lengths[forest.leaf_segment]),
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class SetScore:
    """The score of one set. An answer is correct if its verdict is VERIFIED. `verdicts` counts all verdicts.

    `avg` is avg@`samples`, the share of correct answers. `passes` maps k to pass@k. `completed` is the share of
    answers that the model ended. `completed_correct` is the share of correct answers among these answers; it is None
    if there are none. `cut` is the share of answers that reached the token limit."""

    problems: int
    samples: int
    avg: Estimate
    passes: Mapping[int, Estimate]
    completed: float
    completed_correct: float | None
    cut: float
    tokens: int
    tokens_mean: float  # mean number of tokens of an answer
    verdicts: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """The scores of all sets by name, and the unweighted mean of their `avg`."""

    avg: Estimate
    sets: Mapping[str, SetScore]

    def to_json(self) -> JsonObject:
        """Return the score as JSON values. The keys of `passes` become strings."""
        values: JsonObject = json.loads(json.dumps(asdict(self)))
        return values


def score(results: Mapping[str, Sequence[Result]], samples: int) -> Score:
    """Return the score of the results of each set. `samples` is the number of answers that were requested for each
    problem.

    A missing answer counts as a failure with the verdict `aborted`."""
    sets = {name: _score_set(found, samples) for name, found in results.items()}
    values = [[r.correct / samples for r in found] for found in results.values()]
    return Score(avg=mean_over(values[0]) if len(values) == 1 else mean_of_means(values), sets=sets)


def _score_set(results: Sequence[Result], samples: int) -> SetScore:
    asked = len(results) * samples
    verdicts = Counter(Verdict(v).name.lower() for r in results for v in r.verdicts)
    if missing := asked - sum(verdicts.values()):
        verdicts[Verdict.ABORTED.name.lower()] += missing
    tokens, completed = sum(sum(r.lengths) for r in results), sum(r.completed for r in results)
    return SetScore(
        problems=len(results),
        samples=samples,
        avg=mean_over([r.correct / samples for r in results]),
        passes={k: mean_over([pass_at_k(samples, r.correct, k) for r in results]) for k in powers(samples)},
        completed=completed / asked,
        completed_correct=sum(r.completed_correct for r in results) / completed if completed else None,
        cut=sum(f == Finish.LENGTH for r in results for f in r.finishes) / asked,
        tokens=tokens,
        tokens_mean=tokens / asked,
        verdicts=dict(verdicts.most_common()),
    )
