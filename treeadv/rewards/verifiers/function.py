"""The verifier `module:NAME`, which is a user's function or `Verifier` class."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import math
from collections.abc import Awaitable, Callable

from treeadv.jsonl import JsonMapping
from treeadv.rewards.judgement import Answer, Grade, Task, grade_of
from treeadv.rewards.verifiers.base import Verifier, columns_of


class UserDefined(Verifier):
    """A verifier that imports and calls the user's code. It does so only in worker processes, never in the reward
    actor.

    A function names the keyword arguments that it needs: `problem`, `response`, `gold` and columns of the data line. A
    function with `**columns` gets all columns. The function may be async. `grade_of` describes the result of the
    function."""

    usage = "module:NAME"
    largest_reward = math.inf
    _judge: Callable[[Task], Grade]

    def check_option(self, option: str | None) -> None:
        """Accept any option: the registry has checked the form of the name."""

    def meta(self, row: JsonMapping) -> str:
        return json.dumps(dict(row), default=str)

    def perfect_response(self, gold: str) -> None:
        """Return None: only the user's function defines the form of a response."""

    def load(self) -> None:
        module, _, attribute = self.name.partition(":")
        target = getattr(importlib.import_module(module), attribute)
        if isinstance(target, type) and issubclass(target, Verifier):
            self._judge = self._both_halves(target)
        elif callable(target):
            self._judge = _call(target)
        else:
            raise TypeError(f"{attribute} is not a function and not a subclass of Verifier")

    def judge(self, task: Task) -> Grade:
        return self._judge(task)

    def _both_halves(self, target: type[Verifier]) -> Callable[[Task], Grade]:
        verifier = target(self.name)
        verifier.load()
        self.isolated = verifier.isolated

        def judge(task: Task) -> Grade:
            meta = verifier.meta(columns_of(task.meta))
            screened = verifier.screen(Answer(response=task.text, gold=task.gold, verifier=self.name, meta=meta))
            return verifier.judge(screened) if isinstance(screened, Task) else screened

        return judge


def _call(function: Callable[..., object]) -> Callable[[Task], Grade]:
    """Return a judge that calls a user's function. Raises `TypeError` if the function has positional-only arguments."""
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is p.POSITIONAL_ONLY for p in parameters):
        raise TypeError(f"{inspect.signature(function)} has positional-only arguments; make them keyword arguments")
    everything = any(p.kind is p.VAR_KEYWORD for p in parameters)
    needed = {p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    named = {p.name for p in parameters}

    def judge(task: Task) -> Grade:
        columns = {"problem": ""} | columns_of(task.meta) | {"response": task.text, "gold": task.gold}
        if missing := needed - columns.keys():
            raise TypeError(
                f"the data line has no column {', '.join(sorted(missing))} (columns: {', '.join(map(str, columns))})"
            )
        result = function(**{k: v for k, v in columns.items() if everything or k in named})
        return grade_of(asyncio.run(_awaited(result)) if inspect.isawaitable(result) else result)

    return judge


async def _awaited(result: Awaitable[object]) -> object:
    return await result
