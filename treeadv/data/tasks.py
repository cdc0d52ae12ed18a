"""Prompts with gold answers: JSONL and Parquet files, Hugging Face datasets by name, reasoning-gym families, operator
tables.

A source answers `source[draw]` for every draw >= 0 and depends on (seed, draw) alone: a resumed run asks on where it
stopped.
"""

from __future__ import annotations

import difflib
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from treeadv.config import Family, TablesConfig, TaskConfig
from treeadv.data.operator_tables import Tables, draw_prompt, solve
from treeadv.errors import BadInput, one_line
from treeadv.extensions import require
from treeadv.jsonl import read_jsonl
from treeadv.rewards.golds import gold_text, text_of
from treeadv.rewards.verifiers.registry import find_verifier, verifier_of

REASONING_GYM = "reasoning-gym"
OPERATOR_TABLES = "operator-tables"


@dataclass(frozen=True, slots=True)
class Problem:
    """One prompt. `problem` is the bare text (the prompt template is not applied), `answer` the gold answer.

    `meta` is JSON for the verifier, "" when it needs none; for `reasoning-gym` it is {"dataset": family, "entry":
    {...}}.
    """

    id: str
    problem: str
    answer: str
    verifier: str
    meta: str


class ProblemSource(Protocol):
    """An endless sequence of problems, the same for the same seed."""

    def __getitem__(self, draw: int) -> Problem: ...


def problem_source(task: TaskConfig, seed: int) -> ProblemSource:
    """The source that `task` names. Faults of the task (path, family, option, a line without an answer) are `BadInput`
    here."""
    if task.source == REASONING_GYM:
        return Families(task.families, task.grader, seed)
    if task.source == OPERATOR_TABLES:
        return TableChains(task.tables, task.grader, seed)
    if task.source.startswith("hf:"):
        return Shuffled(_read_hub(task.source, task.grader), seed)
    return Shuffled(read_problems(Path(task.source), task.grader), seed)


def first_problems(source: ProblemSource, count: int = 8) -> Sequence[Problem]:
    """All problems of a finite source, in the order of its file; `count` draws of an endless one."""
    return source.problems if isinstance(source, Shuffled) else [source[draw] for draw in range(count)]


class Shuffled:
    """A finite list of problems, endlessly: each epoch is a permutation drawn from (seed, epoch)."""

    def __init__(self, problems: Sequence[Problem], seed: int) -> None:
        self.problems = problems
        self._seed = seed
        self._epoch = -1
        self._order: list[int] = []

    def __getitem__(self, draw: int) -> Problem:
        epoch, place = divmod(_checked(draw), len(self.problems))
        if epoch != self._epoch:
            everything = range(len(self.problems))
            self._order = random.Random(f"{self._seed}/{epoch}").sample(everything, len(everything))
            self._epoch = epoch
        return self.problems[self._order[place]]


class Families:
    """reasoning-gym families mixed by weight; the family and its entry are both drawn from (seed, draw)."""

    def __init__(self, families: Sequence[Family], verifier: str, seed: int) -> None:
        self._families = families
        self._weights = [f.weight for f in families]
        self._verifier = find_verifier(verifier)
        self._seed = seed
        for family in families:
            _create(family, 0)  # a wrong name or option is reported before the run starts

    def __getitem__(self, draw: int) -> Problem:
        # A data set of one entry a draw: some families build all `size` entries at once, so that a long one never ends.
        rng = random.Random(f"{self._seed}/{_checked(draw)}")
        family = rng.choices(self._families, self._weights)[0]
        entry = _create(family, rng.getrandbits(31))[0]
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
            meta=self._verifier.meta(row),
        )


class TableChains:
    """Problems of the task operator-tables, each drawn from (seed, draw)."""

    def __init__(self, task: TablesConfig, verifier: str, seed: int) -> None:
        self._operations, self._seed = task.operations, seed
        self._tables = Tables.of(task)
        self._verifier = find_verifier(verifier)

    def __getitem__(self, draw: int) -> Problem:
        prompt = draw_prompt(random.Random(f"{self._seed}/{_checked(draw)}"), self._operations)
        answer = solve(prompt, self._tables)[-1]
        return Problem(
            id=f"tables-{self._seed}-{draw}",
            problem=prompt,
            answer=answer,
            verifier=self._verifier.name,
            meta=self._verifier.meta({"problem": prompt, "answer": answer}),
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
    except (TypeError, ValueError, AssertionError) as e:  # what its configuration classes raise
        raise BadInput(f"task.families: {family.name} does not take options {family.options}: {one_line(e)}") from e


def read_problems(path: Path, verifier: str = "math") -> list[Problem]:
    """All problems of a .jsonl or .parquet file, in its order. Each needs `problem` and `answer`; `id`, `meta` are
    optional."""
    readers = {".jsonl": _jsonl_rows, ".parquet": _parquet_rows}
    if path.suffix not in readers:
        raise BadInput(
            f"{path}: problems are read from .jsonl or .parquet files, hf:NAME[[:CONFIGURATION]:SPLIT],"
            f" {REASONING_GYM} or {OPERATOR_TABLES}"
        )
    if not path.is_file():
        raise BadInput(f"{path}: no such file of problems")
    problems = [problem_of(row, f"{path}:{n}", f"{path.stem}-{n}", verifier) for n, row in readers[path.suffix](path)]
    if not problems:
        raise BadInput(f"{path}: holds no problem")
    return problems


def _jsonl_rows(path: Path) -> Iterable[tuple[int, Any]]:
    return read_jsonl(path, "an object with problem and answer")


def _parquet_rows(path: Path) -> Iterable[tuple[int, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as e:
        raise BadInput(f"{path}: not a Parquet file ({one_line(e)})") from e
    return enumerate(table.to_pylist(), 1)


def _read_hub(source: str, verifier: str) -> list[Problem]:
    """`source` is hf:NAME, hf:NAME:SPLIT or hf:NAME:CONFIGURATION:SPLIT. A column `question` stands for `problem`, and
    of an answer counts what comes after ####, where GSM8K's derivations end."""
    name, *rest = source.removeprefix("hf:").split(":")
    split = rest.pop() if rest else "train"
    if len(rest) > 1:
        raise BadInput(f"task.source={source}: write hf:NAME, hf:NAME:SPLIT or hf:NAME:CONFIGURATION:SPLIT")
    try:
        import datasets
    except ImportError as e:
        raise BadInput(
            f"task.source={source}: datasets is not installed (pip install datasets); or give a .jsonl file"
        ) from e
    try:
        rows = datasets.load_dataset(name, *rest, split=split or "train")
    except (
        OSError,
        ValueError,
        datasets.exceptions.DatasetsError,
    ) as e:  # no such set, split or file in it; no network
        raise BadInput(f"task.source={source}: {one_line(e)}") from e
    if "problem" not in rows.column_names and "question" in rows.column_names:
        rows = rows.rename_column("question", "problem")
    missing = {"problem", "answer"} - set(rows.column_names)
    if missing:
        raise BadInput(
            f"task.source={source}: no column {' or '.join(sorted(missing))} (it has {', '.join(rows.column_names)})"
        )
    return [problem_of(_answered(row), f"{source} row {n}", f"{name}-{n}", verifier) for n, row in enumerate(rows, 1)]


def _answered(row: dict[str, Any]) -> dict[str, Any]:
    answer = row["answer"]
    return row | {"answer": answer.rpartition("####")[2].strip()} if isinstance(answer, str) else row


def problem_of(row: Any, where: str, default_id: str, verifier: str) -> Problem:
    """The problem of a mapping with `problem` and `answer`; `where` names it in errors. Raises `BadInput`.

    A row may name its `verifier`; the argument `verifier` is that of the configuration.
    """
    if not isinstance(row, Mapping):
        raise BadInput(f"{where}: an object with problem and answer is needed, found {type(row).__name__}")
    grader = verifier_of(row, verifier, where)
    try:
        meta = grader.meta(row)
    except BadInput as e:
        raise BadInput(f"{where}: {e}") from e
    present = [key for key in ("problem", "answer") if row.get(key) not in (None, "")]
    if "problem" not in present or ("answer" not in present and grader.needs_gold):
        missing = "problem" if "problem" not in present else "answer"
        found = ", ".join(map(str, row)) or "nothing"
        raise BadInput(f"{where}: no {missing}; each needs problem and answer (this one has {found})")
    return Problem(
        id=str(row.get("id") or default_id),
        problem=text_of(row["problem"], "problem", where),
        answer=gold_text(row["answer"], where) if "answer" in present else "",
        verifier=grader.name,
        meta=meta,
    )


def _checked(draw: int) -> int:
    if draw < 0:
        raise IndexError(f"draw {draw}: draws count from 0")
    return draw
