"""The endless source of problems of reasoning-gym families."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from typing import Any

from treeadv.data.problems import Problem
from treeadv.errors import BadInput, one_line
from treeadv.extensions import require
from treeadv.jsonl import JsonObject
from treeadv.rewards.verifiers.registry import find_verifier, meta_of
from treeadv.seeds import generator
from treeadv.task_config import REASONING_GYM, Family, SourceConfig

_TRIES = 1000  # entries that a draw tries; the draw fails if all of them are held out


class Families:
    """The families of a source, mixed by weight. (seed, draw) determines the family and the entry of a draw."""

    def __init__(self, source: SourceConfig, seed: int | str, excluded: Collection[str] = ()) -> None:
        """Check the families. `excluded` holds the keys (`Problem.key`) of the problems that are never drawn."""
        self._families = source.families
        self._weights = [f.weight for f in source.families]
        self._verifier = find_verifier(source.verifier)
        self._seed, self._excluded = seed, excluded
        for family in source.families:
            _create(family, 0)  # reports a wrong name or option before the run starts

    def __getitem__(self, draw: int) -> Problem:
        if draw < 0:
            raise IndexError(f"draw {draw}: draws count from 0")
        # Each draw makes a data set of one entry, because some families build all `size` entries at once.
        rng = generator(self._seed, draw)
        for _ in range(_TRIES):
            family = rng.choices(self._families, self._weights)[0]
            problem = self._problem(family, _create(family, rng.getrandbits(31))[0], draw)
            if problem.key not in self._excluded:
                return problem
        raise BadInput(
            f"task.held_out leaves no problem: {_TRIES} entries of {family.name} in a row are held out; hold out fewer"
        )

    def examples(self, count: int) -> list[Problem]:
        """Return the first `count` draws."""
        return [self[draw] for draw in range(count)]

    def _problem(self, family: Family, entry: JsonObject, draw: int) -> Problem:
        if entry["answer"] is None and self._verifier.needs_gold:
            raise BadInput(
                f"task.families: {family.name} has no gold answer, only a scorer; set task.verifier={REASONING_GYM}"
            )
        row = {"problem": entry["question"], "answer": entry["answer"], "metadata": entry["metadata"]}
        if self._verifier.isolated:  # the scorer of the family needs the whole entry
            row["meta"] = {"dataset": family.name, "entry": entry}
        return Problem(
            id=f"{family.name}-{self._seed}-{draw}",
            problem=entry["question"],
            answer="" if entry["answer"] is None else str(entry["answer"]),
            verifier=self._verifier.name,
            meta=meta_of(self._verifier, row, f"{family.name} draw {draw}"),
        )


def _create(family: Family, seed: int) -> Any:
    require("reasoning_gym", "task.source=reasoning-gym")
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    if family.name not in DATASETS:
        close = difflib.get_close_matches(family.name, DATASETS, n=1, cutoff=0.5)
        meant = (
            f", did you mean {close[0]}?"
            if close
            else f"; there are {len(DATASETS)}, e.g. chain_sum, gcd, basic_arithmetic"
        )
        raise BadInput(f"task.families: unknown reasoning-gym family {family.name!r}{meant}")
    try:
        return reasoning_gym.create_dataset(family.name, seed=seed, size=1, **family.options)
    except (TypeError, ValueError, AssertionError) as e:  # the errors that configuration classes of families raise
        raise BadInput(f"task.families: {family.name} does not take options {family.options}: {one_line(e)}") from e
