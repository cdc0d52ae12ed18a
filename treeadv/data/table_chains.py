"""The endless source of problems of the task operator-tables."""

from __future__ import annotations

from collections.abc import Collection

from treeadv.data.operator_tables import Tables, draw_prompt, solve
from treeadv.data.problems import Problem
from treeadv.errors import BadInput
from treeadv.rewards.verifiers.registry import find_verifier
from treeadv.seeds import generator
from treeadv.task_config import SourceConfig

_TRIES = 1000  # prompts that a draw tries; the draw fails if all of them are held out


class TableChains:
    """A source that draws chains of look-ups. Each chain depends only on (seed, draw)."""

    def __init__(self, source: SourceConfig, seed: int | str, excluded: Collection[str] = ()) -> None:
        """Draw the tables. `excluded` holds the keys (`Problem.key`) of the problems that are never drawn."""
        self._task, self._seed, self._excluded = source.tables, seed, excluded
        self._tables = Tables.of(source.tables)
        self._verifier = find_verifier(source.verifier)

    def __getitem__(self, draw: int) -> Problem:
        if draw < 0:
            raise IndexError(f"draw {draw}: draws count from 0")
        rng = generator(self._seed, draw)
        for _ in range(_TRIES):
            problem = self._problem(draw_prompt(rng, self._task.operations, self._task.operators), draw)
            if problem.key not in self._excluded:
                return problem
        raise BadInput(f"task.held_out leaves no problem: {_TRIES} prompts in a row are held out; hold out fewer")

    def examples(self, count: int) -> list[Problem]:
        """Return the first `count` draws."""
        return [self[draw] for draw in range(count)]

    def _problem(self, prompt: str, draw: int) -> Problem:
        answer = solve(prompt, self._tables)[-1]
        return Problem(
            id=f"tables-{self._seed}-{draw}",
            problem=prompt,
            answer=answer,
            verifier=self._verifier.name,
            meta=self._verifier.meta({"problem": prompt, "answer": answer}),
        )
