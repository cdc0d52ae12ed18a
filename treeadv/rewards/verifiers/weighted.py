"""The verifier `sum`, which adds the weighted rewards of several verifiers (`task.rewards` of the configuration)."""

from __future__ import annotations

import json
from collections.abc import Sequence

from treeadv.errors import BadInput
from treeadv.forest import UNJUDGED
from treeadv.jsonl import JsonMapping
from treeadv.rewards.judgement import Answer, Grade, Task
from treeadv.rewards.verifiers.base import Verifier

PREFIX = "sum:"


def sum_name(terms: Sequence[tuple[str, float]]) -> str:
    """Return the name of the weighted sum of verifiers (name, weight)."""
    return PREFIX + json.dumps([list(term) for term in terms])


def sum_terms(name: str) -> list[tuple[str, float]]:
    """Return the terms (name, weight) of a name of `sum_name`. Raises `BadInput` for any other name."""
    try:
        terms = [(str(verifier), float(weight)) for verifier, weight in json.loads(name.removeprefix(PREFIX))]
    except (ValueError, TypeError) as e:
        raise BadInput(f'verifier {name!r}: write sum:[["math", 1.0], ["my_module:brevity", 0.1]]') from e
    if not terms or len({verifier for verifier, _ in terms}) < len(terms):
        raise BadInput(f"verifier {name!r}: name at least one verifier, and no verifier twice")
    return terms


class WeightedSum(Verifier):
    """A verifier that adds weight * reward of several verifiers.

    The verdict and the detail come from the first verifier. If one verifier does not judge the answer, the sum does not
    judge the answer. The reward of each verifier is a named part."""

    usage = "sum:[[NAME, WEIGHT], ...]"

    def __init__(self, name: str, terms: Sequence[tuple[Verifier, float]]) -> None:
        self._terms = terms
        super().__init__(name)

    def check_option(self, option: str | None) -> None:
        """Accept any option: `sum_terms` has read the name."""

    @property
    def isolated(self) -> bool:  # type: ignore[override]
        return any(v.isolated for v, _ in self._terms)

    @property
    def largest_reward(self) -> float:  # type: ignore[override]
        return sum(abs(weight) * v.largest_reward for v, weight in self._terms)

    @property
    def needs_gold(self) -> bool:  # type: ignore[override]
        return any(v.needs_gold for v, _ in self._terms)

    def meta(self, row: JsonMapping) -> str:
        return json.dumps([v.meta(row) for v, _ in self._terms])

    def perfect_response(self, gold: str) -> str | None:
        return self._terms[0][0].perfect_response(gold)

    def screen(self, answer: Answer) -> Grade | Task:
        screened = self._screened(answer)
        grades = [s for s in screened if isinstance(s, Grade)]
        if len(grades) == len(screened):
            return self._sum(grades)
        return Task(verifier=self.name, gold=answer.gold, text=answer.response, meta=answer.meta)

    def load(self) -> None:
        for verifier, _ in self._terms:
            verifier.load()

    def judge(self, task: Task) -> Grade:
        screened = self._screened(Answer(response=task.text, gold=task.gold, verifier=self.name, meta=task.meta))
        verifiers = [v for v, _ in self._terms]
        return self._sum([v.judge(s) if isinstance(s, Task) else s for v, s in zip(verifiers, screened, strict=True)])

    def _screened(self, answer: Answer) -> list[Grade | Task]:
        metas = json.loads(answer.meta) if answer.meta else [""] * len(self._terms)
        return [
            verifier.screen(Answer(response=answer.response, gold=answer.gold, verifier=verifier.name, meta=meta))
            for (verifier, _), meta in zip(self._terms, metas, strict=True)
        ]

    def _sum(self, grades: Sequence[Grade]) -> Grade:
        for grade in grades:
            if grade.verdict in UNJUDGED:
                return grade
        named = {v.name: o for (v, _), o in zip(self._terms, grades, strict=True)}
        parts = {f"{name}.{component}": x for name, o in named.items() for component, x in o.parts.items()}
        reward = sum(weight * o.reward for (_, weight), o in zip(self._terms, grades, strict=True))
        first = grades[0]
        return Grade(
            verdict=first.verdict,
            reward=reward,
            detail=first.detail,
            parts={name: o.reward for name, o in named.items()} | parts,
        )
