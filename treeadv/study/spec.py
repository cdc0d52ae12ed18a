"""The file of a study, which holds arms, budget, held-out problems and analysis."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from treeadv import config as configuration
from treeadv.config import Config, read_mapping
from treeadv.errors import BadInput, one_line, short
from treeadv.jsonl import JsonObject
from treeadv.local.warmup import Warmup
from treeadv.section import Positive, Section, faults

Changes = JsonObject  # maps dotted keys of the configuration to values
Metric = Literal[
    "test_accuracy", "dev_accuracy", "dev_accuracy_at_tokens", "tokens_to_target", "tokens_generated", "answer_tokens",
    "mixed_outcomes",
]  # fmt: skip
HIGHER_IS_BETTER = {"test_accuracy", "dev_accuracy", "dev_accuracy_at_tokens", "mixed_outcomes"}


_NAME = r"[\w+=-][\w.+=-]*"


class Budget(Section):
    """The budget of every cell, in optimizer steps or in generated tokens."""

    steps: Positive | None = Field(None, description="optimizer steps")
    tokens: Positive | None = Field(
        None, description="generated tokens; a run ends at its first look beyond this number"
    )

    @model_validator(mode="after")
    def _one(self) -> Budget:
        if (self.steps is None) == (self.tokens is None):
            raise ValueError("budget: set either steps or tokens")
        return self


class HeldOut(Section):
    """Problems that no run trains on. They are from a file, or are draws of the task with a seed that no run has."""

    source: str | None = None
    seed: int = 0
    problems: Positive
    samples: Positive = 1


class Comparison(Section):
    """One claim: `arm` is better than `against` in `metric`. Runs are paired by seed."""

    claim: str
    arm: str
    against: str
    metric: Metric = "test_accuracy"


class Analysis(Section):
    """The computations of the report, chosen before the runs."""

    primary: Metric = "test_accuracy"
    baseline: str = Field(description="the row that the others are compared with")
    comparisons: tuple[Comparison, ...]
    test: Literal["paired_t", "wilcoxon"] = "paired_t"
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.05
    target_accuracy: Annotated[float, Field(gt=0, lt=1)] = Field(description="the target of tokens_to_target")


class Study(Section):
    """A grid of full runs. There is a run for each arm, each combination of values of the grid, and each seed."""

    name: str = Field(pattern=r"^[\w-][\w.-]*$")
    question: str
    base: JsonObject = Field(description="a configuration as in a recipe")
    warmup: Warmup | None = Field(
        None, description="the model to train first; without it, base names a model in model.path"
    )
    arms: dict[str, Changes]
    grid: dict[str, dict[str, Changes]] = Field(default_factory=dict, description="axis, value, its changes")
    seeds: Annotated[tuple[int, ...], Field(min_length=1)]
    budget: Budget
    look_every: Positive = Field(description="optimizer steps between looks at the development problems")
    development: HeldOut
    test: HeldOut
    forests_kept: tuple[int, ...] = Field((), description="steps whose forests cell.json describes")
    analysis: Analysis

    @model_validator(mode="after")
    def _coherent(self) -> Study:
        for c in self.analysis.comparisons:
            for arm in (c.arm, c.against):
                if arm not in self.rows:
                    raise ValueError(f"analysis.comparisons: no row {arm!r}; there are {', '.join(self.rows)}")
        if self.analysis.baseline not in self.rows:
            raise ValueError(f"analysis.baseline: no row {self.analysis.baseline!r}; there are {', '.join(self.rows)}")
        if unfit := [name for row in self.rows for name in row.split("/") if not re.fullmatch(_NAME, name)]:
            raise ValueError(
                f"{short(unfit[0])} names an arm or a value of the grid, so it is part of a file name; use letters,"
                " digits and . _ + = -"
            )
        try:
            json.dumps([self.base, self.rows])
        except (TypeError, ValueError, RecursionError) as e:  # a date, bytes, or a mapping that holds itself
            raise ValueError(f"base, arms and grid must hold JSON values ({one_line(e)}); write it as a text") from e
        if self.warmup and {"seed", "hard"} & _tables(self.base).keys():
            raise ValueError("base.task.tables: seed and hard come from warmup.tables; remove them")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: a seed is named twice; remove one")
        if (self.development.source, self.development.seed) == (self.test.source, self.test.seed):
            raise ValueError("development and test must not be the same problems: give them another seed or source")
        if {x.seed for x in (self.development, self.test) if x.source is None} & set(self.seeds):
            raise ValueError("development.seed and test.seed must not be seeds of runs: they name held-out problems")
        return self

    @property
    def rows(self) -> dict[str, Changes]:
        """Return the changes of each combination of an arm and values of the grid, by name: `arm` or
        `arm/value/...`.
        """
        rows = dict(self.arms)
        for values in self.grid.values():
            rows = {
                f"{name}/{value}": changes | more for name, changes in rows.items() for value, more in values.items()
            }
        return rows

    @property
    def cells(self) -> list[Cell]:
        """Return all cells in the order of their runs.

        All rows of one seed come before the next seed, so a study that ends early has about the same number of runs of
        each row.
        """
        return [Cell(row=row, seed=seed) for seed in self.seeds for row in self.rows]


def _tables(base: JsonObject) -> JsonObject:
    """Return base.task.tables. Raises ValueError if it is no mapping."""
    task = base.get("task", {})
    tables = task.get("tables", {}) if isinstance(task, dict) else None
    if not isinstance(tables, dict):
        raise ValueError("base.task and base.task.tables must be mappings")
    return tables


class Cell(Section):
    """One run of the grid."""

    row: str
    seed: int

    @property
    def folder(self) -> str:
        """Return the name of the folder of the cell."""
        return f"{self.row.replace('/', '--')}--seed-{self.seed}"


def load_study(path: Path) -> Study:
    """Read the file of a study. Checks the file and the configuration of each cell. Raises `BadInput`."""
    if not path.is_file():
        raise BadInput(f"{path}: no such study (studies: docs/results/*.yaml)")
    try:
        study = Study.model_validate(read_mapping(path, "a study is a mapping"))
    except ValidationError as e:
        raise BadInput(f"{path}: {faults(e)}") from e
    for cell in study.cells:
        cell_config(study, cell, path.parent, Path("model"), 1)
    return study


def cell_config(study: Study, cell: Cell, folder: Path, model: Path | None, steps: int) -> Config:
    """Return the configuration of a cell whose run is in `folder`/run and ends after `steps` steps.

    `model` is the pretrained model. Raises `BadInput` for an unknown key."""
    fixed: Changes = {
        "run.root": str(folder), "run.name": "run", "run.seed": cell.seed, "run.steps": steps,
        "run.checkpoint_every": study.look_every, "run.keep_checkpoints": 10**6,
    }  # fmt: skip
    if study.warmup is not None:
        tables = study.warmup.tables.model_dump() | _tables(study.base)
        fixed |= {"model.path": str(model), "task.source": "operator-tables", "task.tables": tables}
    changes = study.rows[cell.row] | fixed
    base = json.loads(json.dumps(study.base))
    return configuration.build(base, [f"{k}={json.dumps(v)}" for k, v in changes.items()], f"row {cell.row}")
