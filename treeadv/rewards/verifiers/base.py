"""What a verifier is: its name, and the two halves of its work."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

from treeadv.errors import BadInput
from treeadv.rewards.judgement import Answer, Outcome, Task


class Unusable(Exception):
    """The verifier itself cannot be used (missing module, unknown family): a fault of the configuration, not of an
    answer."""


class Verifier:
    """Compares a response with a gold answer. Subclasses override `screen`, or `load` and `judge`, or all three.

    `screen` runs in the reward actor and must be fast and safe on any text. What it cannot decide it returns as a
    `Task`. A worker process calls `load` once, then `judge` for each task, under a time limit and a memory limit."""

    usage: ClassVar[str] = ""  # how a configuration names it, for help texts
    preloaded: ClassVar[bool] = False  # whether a worker calls `load` before it reports ready
    needs_gold: ClassVar[bool] = True  # whether a problem without a gold answer is refused
    largest_reward: float = 1.0  # no reward is larger, nor smaller than its negative
    isolated: bool = False  # whether `judge` may evaluate the answer: a worker then judges in a forked child

    def __init__(self, name: str) -> None:
        """`name` is the whole name of the configuration, with its option. Raises `BadInput` for an option it does not
        take."""
        self.name = name
        self.check_option(name.partition(":")[2] if ":" in name else None)

    def check_option(self, option: str | None) -> None:
        """Read what follows the colon in the name (None without a colon). A verifier without options accepts only
        None."""
        if option is not None:
            raise BadInput(f"verifier {self.name!r}: {self.usage} takes no option; write {self.usage}")

    def meta(self, row: Mapping[str, Any]) -> str:
        """What a task of this verifier needs of its data line, as text. Raises `BadInput` where the line lacks it."""
        meta = row.get("meta")
        return "" if meta is None else meta if isinstance(meta, str) else json.dumps(meta, default=str)

    def perfect_response(self, gold: str) -> str | None:
        """A response that must be verified against `gold`, or None where only the verifier knows the form of a
        response."""
        return f"<answer>{gold}</answer>"

    def screen(self, answer: Answer) -> Outcome | Task:
        """Return the outcome where the text alone decides it, else the task for a worker. Linear in the length of the
        answer."""
        return Task(self.name, answer.gold, answer.response, answer.meta)

    def load(self) -> None:
        """Import what `judge` needs. An exception means that the verifier cannot be used."""

    def judge(self, task: Task) -> Outcome:
        """Return the outcome of a task. An exception is a crash of the verifier, never a wrong answer."""
        raise NotImplementedError(f"verifier {self.name!r} decides every answer in `screen`")


def columns_of(meta: str) -> dict[str, Any]:
    """The data line of a task whose `meta` is the whole line as JSON. Any other text is the column `meta`."""
    try:
        columns = json.loads(meta) if meta else {}
    except ValueError:
        columns = meta
    return {"meta": ""} | (columns if isinstance(columns, dict) else {"meta": columns})
