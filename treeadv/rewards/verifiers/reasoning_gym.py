"""The verifier `reasoning-gym`, which calls the scorer of a reasoning-gym family."""

from __future__ import annotations

import json
from collections.abc import Callable

from treeadv.errors import BadInput
from treeadv.jsonl import JsonMapping
from treeadv.rewards.judgement import Answer, Grade, Task, scored, share, unparsed
from treeadv.rewards.parsing.extract import final_answer, last_line, marked_answer
from treeadv.rewards.parsing.numbers import quantity
from treeadv.rewards.verifiers.base import Verifier


class ReasoningGym(Verifier):
    """A verifier that calls the scorer of the family that `meta` names. A task has the verifier `reasoning-gym:FAMILY`.

    Nine scorers execute the text of the answer, so every answer is judged in a forked child.
    """

    usage = "reasoning-gym"
    isolated = True
    needs_gold = False
    _score: Callable[..., float]

    def check_option(self, option: str | None) -> None:
        self._family = option

    def meta(self, row: JsonMapping) -> str:
        if not (meta := super().meta(row)):
            raise BadInput(f"the line has no meta, which verifier {self.usage} needs; set task.verifier=math")
        return meta

    def perfect_response(self, gold: str) -> None:
        """Return None: some families have several right answers, and some families give no answer."""

    def read_part(self, answer: Answer) -> str:
        _, gold = self._entry(answer)
        response = answer.response
        number = quantity(gold) is not None
        return (final_answer(response) if number else marked_answer(response) or last_line(response)) or ""

    def screen(self, answer: Answer) -> Grade | Task:
        family, gold = self._entry(answer)
        text = self.read_part(answer)
        if not text:
            return unparsed("no answer found")
        return Task(verifier=f"reasoning-gym:{family}", gold=gold, text=text, meta=answer.meta)

    def _entry(self, answer: Answer) -> tuple[str, str]:
        """Return the family and the gold answer of `meta`. Raises `BadInput` for any other `meta`."""
        try:
            meta = json.loads(answer.meta)
            family, gold = meta["dataset"], str(meta["entry"]["answer"])
        except (ValueError, KeyError, TypeError) as e:
            needed = '{"dataset": NAME, "entry": {"question", "answer", "metadata"}}'
            raise BadInput(f"verifier {self.name!r}: meta must be JSON {needed}") from e
        if self._family not in (None, family):
            raise BadInput(f"verifier {self.name!r}: meta names the family {family!r}; write reasoning-gym")
        return family, gold

    def load(self) -> None:
        from reasoning_gym.factory import DATASETS, get_score_answer_fn

        if self._family not in DATASETS:
            raise LookupError(f"reasoning-gym has no data set {self._family!r}")
        self._score = get_score_answer_fn(self._family)

    def judge(self, task: Task) -> Grade:
        return scored(share(self._score(answer=task.text, entry=json.loads(task.meta)["entry"])))
