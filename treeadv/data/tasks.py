"""Provides the problems of a task. Reads its sources, removes the held-out problems, and mixes the sources by weight.

A source gives a problem `source[draw]` for every draw >= 0. The problem depends only on (seed, draw), so a resumed run
continues with the next draw.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Protocol

from treeadv.data.families import Families
from treeadv.data.problems import Problem, problems_of
from treeadv.data.rows import content_hash, read_rows
from treeadv.data.table_chains import TableChains
from treeadv.errors import BadInput
from treeadv.seeds import derive, generator
from treeadv.task_config import ENDLESS, OPERATOR_TABLES, REASONING_GYM, SourceConfig, TaskConfig


class ProblemSource(Protocol):
    """An endless sequence of problems that depends only on the seed."""

    def __getitem__(self, draw: int) -> Problem: ...

    def examples(self, count: int) -> Sequence[Problem]:
        """Return all problems of a finite source, in the order of its file, or `count` draws of an endless source."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitSource:
    """One source of a task. Training draws from `train`, and never draws the problems in `held_out`.

    `size` is the number of training problems, or None for an endless source.
    """

    config: SourceConfig
    train: ProblemSource
    held_out: Sequence[Problem]
    size: int | None


def problem_source(task: TaskConfig, seed: int) -> ProblemSource:
    """Return the training problems of `task`.

    Raises `BadInput` for a wrong path, family or option, a line without an answer, or content that differs from
    `task.content`."""
    parts = read_parts(task, seed)
    return parts[0].train if len(parts) == 1 else Mixture([(p.train, p.config.weight) for p in parts], seed)


def held_out_problems(task: TaskConfig) -> list[Problem]:
    """Return the held-out problems of `task.held_out`, which do not depend on `run.seed`.

    Raises `BadInput` as `problem_source` does, and if the task has no held-out problems."""
    if not task.held_out:
        raise BadInput("task.held_out=0: the task holds no problem out; set task.held_out to a number or a share")
    return [problem for source in read_parts(task, 0) for problem in source.held_out]


def read_parts(task: TaskConfig, seed: int) -> list[SplitSource]:
    """Read all sources of a task and split each into training and held-out problems.

    Problems with the same text are on the same side of the split, even if they come from different sources."""
    for source in task.parts:
        check_content(source.source, task)
    read = [None if s.source in ENDLESS else read_problems(s) for s in task.parts]
    numbers = _held_out_numbers(task, read)
    drawn: dict[int, list[Problem]] = {}
    keys: set[str] = set()
    for n, source in enumerate(task.parts):
        if read[n] is None:
            drawn[n] = _distinct(_endless(source, f"held-out-{task.held_out_seed}"), numbers[n])
            keys |= {p.key for p in drawn[n]}
    keys |= _chosen({p.key for problems in read if problems for p in problems}, numbers[-1], task.held_out_seed)
    parts = []
    for n, (source, problems) in enumerate(zip(task.parts, read, strict=True)):
        if problems is None:
            endless = _endless(source, seed, keys)
            parts.append(SplitSource(config=source, train=endless, held_out=drawn[n], size=None))
            continue
        kept = [p for p in problems if p.key not in keys]
        if not kept:
            raise BadInput(
                f"task.held_out={task.held_out:g} leaves no problem of {source.source} to train on; hold out fewer"
            )
        held_out = [p for p in problems if p.key in keys]
        parts.append(SplitSource(config=source, train=Shuffled(kept, seed), held_out=held_out, size=len(kept)))
    return parts


def _held_out_numbers(task: TaskConfig, read: Sequence[list[Problem] | None]) -> list[int]:
    """Return the number of held-out problems of each source, followed by the number for all files together.

    The number of a file is 0, because the last number covers it."""
    endless = [0.0 if problems is not None else s.weight for s, problems in zip(task.parts, read, strict=True)]
    distinct = len({p.key for problems in read if problems for p in problems})
    if not task.held_out:
        return [0] * (len(endless) + 1)
    if task.held_out < 1:
        if any(endless):
            raise BadInput(f"task.held_out={task.held_out:g}: {' and '.join(ENDLESS)} are endless; give a number")
        return [0] * len(endless) + [math.ceil(task.held_out * distinct)]
    total = int(task.held_out)
    weights = sum(s.weight for s in task.parts)
    numbers = [math.floor(total * weight / weights) for weight in endless]
    rest = total - sum(numbers)
    if not distinct:  # all sources are endless; the first source gets what rounding leaves over
        return [numbers[0] + rest, *numbers[1:], 0]
    if rest >= distinct:
        raise BadInput(f"task.held_out={total}: the data has {distinct} distinct problems; hold out fewer")
    return [*numbers, rest]


def _chosen(keys: set[str], count: int, seed: int) -> set[str]:
    """Return `count` of the keys. The hash of (seed, key) chooses them, so the order of the lines does not matter."""
    return set(sorted(keys, key=lambda key: derive(seed, key))[:count])


# The sources that generate their problems. The keys are `ENDLESS`.
_GENERATED: dict[str, Callable[[SourceConfig, int | str, Collection[str]], ProblemSource]] = {
    REASONING_GYM: Families,
    OPERATOR_TABLES: TableChains,
}


def _endless(source: SourceConfig, seed: int | str, excluded: Collection[str] = ()) -> ProblemSource:
    return _GENERATED[source.source](source, seed, excluded)


def _distinct(endless: ProblemSource, count: int) -> list[Problem]:
    """Return the first `count` draws with different texts."""
    found: dict[str, Problem] = {}
    for draw in range(100 * count):
        if len(found) == count:
            break
        problem = endless[draw]
        found.setdefault(problem.key, problem)
    if len(found) < count:
        raise BadInput(f"task.held_out={count}: the source gave {len(found)} different problems; hold out fewer")
    return list(found.values())


def read_problems(source: SourceConfig) -> list[Problem]:
    """Return all problems of a file or of a Hugging Face data set, in order. Raises `BadInput`."""
    rows = read_rows(source.source)
    if not rows:
        raise BadInput(f"{source.source} has no problem; name a source with at least one row")
    return problems_of(rows, source)


def file_problems(path: Path, task: TaskConfig) -> list[Problem]:
    """Return all problems of one file, with columns, normaliser and verifier of `task`."""
    own = {"columns": task.columns, "normaliser": task.normaliser, "verifier": task.grader}
    return read_problems(SourceConfig.model_validate({"source": str(path), **own}))


def check_content(source: str, task: TaskConfig) -> None:
    """Raise `BadInput` if the content of `source` differs from its hash in `task.content`."""
    expected = task.content.get(source)
    if expected and expected != (found := content_hash(source)):
        raise BadInput(
            f"{source}: the content has changed (SHA-256 {found[:12]}..., task.content says {expected[:12]}...):"
            " restore it, or start a new run"
        )


class Shuffled:
    """A source of draws from a finite list of problems. Each epoch is a permutation that depends on (seed, epoch)."""

    def __init__(self, problems: Sequence[Problem], seed: int) -> None:
        self.problems = problems
        self._seed = seed
        self._epoch = -1
        self._order: list[int] = []

    def __getitem__(self, draw: int) -> Problem:
        epoch, place = divmod(_checked(draw), len(self.problems))
        if epoch != self._epoch:
            everything = range(len(self.problems))
            self._order = generator(self._seed, epoch).sample(everything, len(everything))
            self._epoch = epoch
        return self.problems[self._order[place]]

    def examples(self, count: int) -> Sequence[Problem]:
        return self.problems


class Mixture:
    """A source that chooses among several sources by weight. Each source gives its problems in its own order."""

    def __init__(self, sources: Sequence[tuple[ProblemSource, float]], seed: int) -> None:
        self._sources = [source for source, _ in sources]
        self._bounds = list(accumulate(weight for _, weight in sources))
        self._rng = generator(seed, "sources")
        self._places: list[tuple[int, int]] = []  # (source, draw of the source) of each draw that was requested
        self._counts = [0] * len(sources)

    def __getitem__(self, draw: int) -> Problem:
        while len(self._places) <= _checked(draw):
            chosen = bisect(self._bounds, self._rng.random() * self._bounds[-1], hi=len(self._bounds) - 1)
            self._places.append((chosen, self._counts[chosen]))
            self._counts[chosen] += 1
        source, place = self._places[draw]
        return self._sources[source][place]

    def examples(self, count: int) -> Sequence[Problem]:
        return [problem for source in self._sources for problem in source.examples(count)]


def _checked(draw: int) -> int:
    if draw < 0:
        raise IndexError(f"draw {draw}: draws count from 0")
    return draw
