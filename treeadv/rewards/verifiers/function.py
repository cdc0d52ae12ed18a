"""The verifier `module:NAME`: a function, or a `Verifier` class, of the user."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from treeadv.rewards.judgement import Answer, Outcome, Task, scored
from treeadv.rewards.verifiers.base import Verifier


class UserDefined(Verifier):
    """Imports what the name says in the worker process only, so that code of the user never runs in the reward actor."""

    usage = "module:NAME"
    _judge: Callable[[Task], Outcome]

    def check_option(self, option: str | None) -> None:
        """Accept any: the registry has checked the form of the name."""

    def load(self) -> None:
        module, _, attribute = self.name.partition(":")
        target = getattr(importlib.import_module(module), attribute)
        if isinstance(target, type) and issubclass(target, Verifier):
            self._judge = self._both_halves(target)
        elif callable(target):
            self._judge = lambda task: _outcome(target(task.text, task.gold, task.meta))
        else:
            raise TypeError(f"{attribute} is neither a function nor a subclass of Verifier")

    def judge(self, task: Task) -> Outcome:
        return self._judge(task)

    def _both_halves(self, target: type[Verifier]) -> Callable[[Task], Outcome]:
        verifier = target(self.name)
        verifier.load()
        self.isolated = verifier.isolated

        def judge(task: Task) -> Outcome:
            screened = verifier.screen(Answer(task.text, task.gold, self.name, task.meta))
            return verifier.judge(screened) if isinstance(screened, Task) else screened

        return judge


def _outcome(result: Any) -> Outcome:
    """The outcome of what a function returns: a score, a bool, or (score, detail)."""
    score, detail = result if isinstance(result, tuple) else (result, "")
    return scored(float(score), str(detail))
