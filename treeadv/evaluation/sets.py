"""The problems of an evaluation. One file is one set, and a folder of files holds several sets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from treeadv.config import Config
from treeadv.data.problems import Problem
from treeadv.data.rows import READERS
from treeadv.data.tasks import file_problems, held_out_problems
from treeadv.data.tickets import Ticket
from treeadv.errors import BadInput
from treeadv.places import is_text
from treeadv.seeds import derive, generator
from treeadv.task_config import TaskConfig

HELD_OUT = "held-out"


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalSet:
    """A named set of problems. `places` are the positions of the problems in their file, counted from 0."""

    name: str
    problems: tuple[Problem, ...]
    places: tuple[int, ...]


def read_sets(path: Path, task: TaskConfig, limit: int | None = None, subset: int | None = None) -> list[EvalSet]:
    """Read the set of a file, or the sets of the files of a folder that hold problems, in the order of their names.

    `limit` keeps the first problems of each set. `subset` keeps this number of problems. They are drawn with the
    name of the set as the seed, so every run and every model gets the same problems. The path `held-out` means the
    problems that `task.held_out` keeps out of training. Raises `BadInput` for a path without problems."""
    if str(path) == HELD_OUT:
        return [_eval_set(HELD_OUT, held_out_problems(task), limit, subset)]
    if not path.exists():
        raise BadInput(f"{path}: no such file or folder of problems")
    files = sorted(f for f in path.iterdir() if f.suffix.lower() in READERS) if path.is_dir() else [path]
    if not files:
        raise BadInput(f"{path}: the folder holds no {' or '.join(READERS)} file of problems")
    if odd := next((f for f in files if not is_text(f.name)), None):
        raise BadInput(f"{str(odd)!a}: the name is not UTF-8 text, and it names a set; rename the file")
    names = [f.stem for f in files]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise BadInput(f"{path}: two files have the name {twice[0]}, which names their sets; rename one file")
    return [_eval_set(file.stem, file_problems(file, task), limit, subset) for file in files]


def _eval_set(name: str, problems: Sequence[Problem], limit: int | None, subset: int | None) -> EvalSet:
    places = list(range(len(problems)))[:limit]
    if subset is not None and subset < len(places):
        places = sorted(generator("subset", name).sample(places, subset))
    return EvalSet(name=name, problems=tuple(problems[i] for i in places), places=tuple(places))


def sets_of(config: Config) -> list[EvalSet]:
    """Read the held-out sets that `eval.data` names."""
    return read_sets(Path(config.eval.data), config.task, subset=config.eval.subset)


def independent(config: Config, samples: int) -> Config:
    """Return `config` with `samples` rollouts for each problem, each in its own tree.

    Leaves of the same tree are not independent of each other."""
    alone = {"rule": "none", "rule_options": {}, "leaves": samples, "trees": samples}
    return config.model_copy(update={"sampling": config.sampling.model_copy(update=alone)})


def held_out(config: Config) -> Config:
    """Return the configuration that draws the answers of an evaluation during training."""
    e = config.eval
    given = {"temperature": e.temperature, "max_tokens": e.max_tokens}
    sampling = config.sampling.model_copy(update={k: v for k, v in given.items() if v is not None})
    return independent(config.model_copy(update={"sampling": sampling}), e.samples)


def tickets(eval_set: EvalSet, seed: int) -> Iterator[Ticket]:
    """Yield one ticket for each problem. The seed of a ticket depends only on the set, the place in the file and
    `seed`.

    So two models, or two steps of a run, answer with the same random numbers."""
    for place, problem in zip(eval_set.places, eval_set.problems, strict=True):
        ticket_seed = derive(seed, "eval", eval_set.name, place)
        yield Ticket(
            forest_id=f"eval-{eval_set.name}-{place}", draw=place, attempt=0, problem=problem, seed=ticket_seed, tau=0.0
        )


def shared_problems(sets: Sequence[EvalSet], trained: Sequence[Problem]) -> int:
    """Return the number of held-out problems that have the text of a training problem."""
    texts = {p.problem.strip() for p in trained}
    return sum(p.problem.strip() in texts for s in sets for p in s.problems)
