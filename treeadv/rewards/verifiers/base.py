"""The base class of verifiers."""

from __future__ import annotations

import json
from typing import ClassVar

from treeadv.errors import BadInput
from treeadv.jsonl import JsonMapping, JsonObject
from treeadv.rewards.judgement import Answer, Grade, Task


class Unusable(Exception):
    """A verifier cannot be used (missing module, unknown family). The configuration is wrong, not an answer."""


class Verifier:
    """The base class of verifiers, which compare a response with a gold answer. Subclasses override `screen`, or `load`
    and `judge`, or all three.

    `screen` runs in the reward actor and must be fast and safe on any text. If the text does not decide the grade,
    `screen` returns a `Task`. A worker process calls `load` once and then `judge` for each task, under a time limit and
    a memory limit."""

    usage: ClassVar[str] = ""  # the name in a configuration, for help texts
    preloaded: ClassVar[bool] = False  # whether a worker calls `load` before it reports ready
    needs_gold: ClassVar[bool] = True  # whether a problem without a gold answer is refused
    largest_reward: float = 1.0  # largest absolute value of a reward
    isolated: bool = False  # whether `judge` may execute the answer; a worker then judges in a forked child

    def __init__(self, name: str) -> None:
        """Check the option. `name` is the name in the configuration, including the option after the colon.

        Raises `BadInput` for an invalid option."""
        self.name = name
        self.check_option(name.partition(":")[2] if ":" in name else None)

    def check_option(self, option: str | None) -> None:
        """Read the option: the text after the colon in the name, None without a colon.

        Raises `BadInput` for an invalid option. A verifier without options accepts None only."""
        if option is not None:
            raise BadInput(f"verifier {self.name!r}: {self.usage} takes no option; write {self.usage}")

    def meta(self, row: JsonMapping) -> str:
        """Return the data that this verifier needs from a data line, as text. Raises `BadInput` for missing data."""
        meta = row.get("meta")
        return "" if meta is None else meta if isinstance(meta, str) else json.dumps(meta, default=str)

    def perfect_response(self, gold: str) -> str | None:
        """Return a response that must be verified against `gold`, or None if such a response cannot be constructed."""
        return f"<answer>{gold}</answer>"

    def screen(self, answer: Answer) -> Grade | Task:
        """Return the grade if the text alone decides it, else the task for a worker.

        Takes time linear in the length of the answer."""
        return Task(verifier=self.name, gold=answer.gold, text=answer.response, meta=answer.meta)

    def read_part(self, answer: Answer) -> str | None:
        """Return the part of the response that decides the grade. The part is "" if the response has no such part,
        and None if the whole response may decide the grade. `treeadv view` shows the part."""
        return None

    def load(self) -> None:
        """Import the modules that `judge` needs. An exception means that the verifier cannot be used."""

    def judge(self, task: Task) -> Grade:
        """Return the grade of a task. An exception counts as a crash of the verifier, never as a wrong answer.

        A verifier whose `screen` decides every answer needs no `judge`."""
        raise RuntimeError(f"verifier {self.name!r} has no `judge`, but its `screen` returned a task")


def columns_of(meta: str) -> JsonObject:
    """Return the columns of the data line from `meta`, which is the line as JSON. Other text becomes column `meta`."""
    try:
        columns = json.loads(meta) if meta else {}
    except ValueError:
        columns = meta
    return {"meta": ""} | (columns if isinstance(columns, dict) else {"meta": columns})
