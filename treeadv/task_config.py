"""The section `task` of the configuration: the problems, their prompt and their verifier."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from treeadv.rewards.verifiers.registry import USAGE
from treeadv.rewards.verifiers.weighted import sum_name
from treeadv.section import NonNegative, Positive, PositiveFloat, Section, Share

REASONING_GYM, OPERATOR_TABLES = "reasoning-gym", "operator-tables"
ENDLESS = (REASONING_GYM, OPERATOR_TABLES)  # sources that generate their problems and read no file
_SOURCE = "reasoning-gym, operator-tables, a .jsonl, .parquet or .csv file, or hf:NAME[[:CONFIGURATION]:SPLIT]"


class Family(Section):
    """One reasoning-gym family and its share of the mix."""

    name: str
    weight: PositiveFloat = 1.0
    options: dict[str, Any] = Field(default_factory=dict, description="passed to reasoning_gym.create_dataset")


class TablesConfig(Section):
    """The task operator-tables: docs/studies.md."""

    operations: Positive = Field(5, description="look-ups of a problem")
    operators: Literal[1, 2, 3] = Field(3, description="tables that problems use, of the three that exist")
    hard: Share = Field(0.3, description="share of the table entries that the warm-up text mostly gets wrong")
    seed: int = Field(0, description="of the tables; problems are drawn from run.seed")


class RewardTerm(Section):
    """One verifier of a weighted sum."""

    name: str
    weight: float = 1.0


class SourceConfig(Section):
    """One of several sources of problems. What it leaves out is taken from the section `task`."""

    source: str = Field(description=_SOURCE)
    tables: TablesConfig = TablesConfig()
    weight: PositiveFloat = Field(1.0, description="share of the draws, relative to the other sources")
    families: list[Family] = Field(default_factory=list, description="for reasoning-gym: the mix of families")
    columns: dict[str, str] = Field(default_factory=dict, description="as task.columns; empty: task.columns")
    normaliser: str = Field("", description="as task.normaliser; empty: task.normaliser")
    verifier: str = Field("", description="as task.verifier; empty: task.verifier or task.rewards")

    @property
    def names(self) -> list[str]:
        """Return the names of the families of reasoning-gym; an empty list for another source."""
        return [f.name for f in self.families] if self.source == REASONING_GYM else []

    @model_validator(mode="after")
    def _coherent(self) -> SourceConfig:
        if self.source == REASONING_GYM and not self.families:
            raise ValueError("families must name at least one reasoning-gym family")
        return self


class TaskConfig(Section):
    """Problems, the prompt, and who judges the answers."""

    source: str = Field(REASONING_GYM, description=_SOURCE)
    tables: TablesConfig = TablesConfig()
    sources: list[SourceConfig] = Field(
        default_factory=list, description="several sources with weights; replaces task.source and task.families"
    )
    families: list[Family] = Field(default_factory=list, description="for reasoning-gym: the mix of families")
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="column of the data for each of problem, answer, id, meta, and for further names that a reward "
        "function takes; a.b is the field b of the column a",
    )
    normaliser: str = Field(
        "hashes",
        description="how the answer column gives the gold answer: an entry of data.normalisers.NORMALISERS or"
        " module:Name"
        " (hashes takes what follows the last ####, if the source has such marks)",
    )
    system: str = Field("", description="system message, for data lines that have none of their own")
    prompt: str = Field("{problem}", description="the (last) turn of the user; {problem} is replaced")
    template_args: dict[str, Any] = Field(
        default_factory=dict, description="arguments of the chat template, such as {enable_thinking: false}"
    )
    held_out: NonNegative = Field(
        0.0, description="problems that are never trained on: a number of them, or below 1 a share"
    )
    held_out_seed: int = Field(0, description="chooses the held-out problems; run.seed does not")
    verifier: str = Field("math", description=USAGE)
    rewards: list[RewardTerm] = Field(
        default_factory=list, description="verifiers whose weighted rewards are added; replaces task.verifier"
    )
    content: dict[str, str] = Field(
        default_factory=dict,
        description="SHA-256 of each source; other content is refused. A run writes down what it starts with",
    )

    @property
    def grader(self) -> str:
        """Return the name of the verifier for problems that name no verifier."""
        return sum_name([(r.name, r.weight) for r in self.rewards]) if self.rewards else self.verifier

    @property
    def parts(self) -> list[SourceConfig]:
        """Return the sources, one or several, with all fields filled in."""
        if not self.sources:
            own = {key: getattr(self, key) for key in ("source", "tables", "families", "columns", "normaliser")}
            return [SourceConfig(**own, verifier=self.grader)]
        return [
            s.model_copy(
                update={
                    "columns": s.columns or self.columns,
                    "normaliser": s.normaliser or self.normaliser,
                    "verifier": s.verifier or self.grader,
                }
            )
            for s in self.sources
        ]

    @property
    def title(self) -> str:
        """Return the families, or else the sources, as text for headings."""
        names = [name for s in self.parts for name in (s.names or [s.source])]
        return ", ".join(dict.fromkeys(names))

    @model_validator(mode="before")
    @classmethod
    def _grade_tables(cls, data: object) -> object:
        """Set the verifier of operator-tables if the configuration names no verifier."""
        if isinstance(data, dict) and data.get("source") == OPERATOR_TABLES and not data.get("rewards"):
            return {"verifier": "last-digit"} | data
        return data

    @model_validator(mode="after")
    def _coherent(self) -> TaskConfig:
        if "{problem}" not in self.prompt:
            raise ValueError("task.prompt must contain {problem}")
        if self.rewards and self.verifier != "math":
            raise ValueError("set task.verifier or task.rewards, not both")
        if self.sources and (self.source != REASONING_GYM or self.families):
            raise ValueError("set task.source (with task.families) or task.sources, not both")
        if not self.sources and self.source == REASONING_GYM and not self.families:
            raise ValueError("task.families must name at least one reasoning-gym family")
        if self.held_out >= 1 and self.held_out != int(self.held_out):
            raise ValueError(f"task.held_out={self.held_out:g}: give a whole number of problems, or a share below 1")
        return self
