"""The task `operator-tables`, which consists of chains of look-ups in fixed random tables. It is for a small model.

A prompt gives a digit and operations, such as `7a3c1b9|`. Each operator (a, b, c) is a table of 10 x 10 digits. The
answer writes each step, such as `7a3=2;2c1=5;5b9=4`, and its last digit is the result. The share `hard` of the entries
is hard. The text that pretrains the model (`treeadv.local.warmup`) mostly gives a wrong digit for a hard entry, so the
policy must find the right digit by exploration.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from treeadv.seeds import derive
from treeadv.task_config import TablesConfig

OPERATORS = "abc"
CHARACTERS = "0123456789" + OPERATORS + "|=;"
Digits = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables:
    """The tables. `right` and `wrong` [3, 10, 10] hold the right digit and a wrong digit of each entry.

    `hard` [3, 10, 10] marks the hard entries."""

    right: Digits
    wrong: Digits
    hard: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, task: TablesConfig) -> Tables:
        """Draw the tables from `task.seed`. The share `task.hard` of all entries, up to rounding, is hard."""
        rng = np.random.default_rng(derive(task.seed, "operator-tables"))
        shape = (len(OPERATORS), 10, 10)
        right = rng.integers(0, 10, shape)
        wrong = (right + rng.integers(1, 10, shape)) % 10
        hard = np.zeros(right.size, np.bool_)
        hard[rng.permutation(right.size)[: round(task.hard * right.size)]] = True
        return cls(right=right, wrong=wrong, hard=hard.reshape(shape))


def draw_prompt(rng: random.Random, operations: int, operators: int = len(OPERATORS)) -> str:
    """Draw a prompt of `operations` operations with the first `operators` tables, such as `7a3c1|`."""
    steps = (rng.choice(OPERATORS[:operators]) + str(rng.randrange(10)) for _ in range(operations))
    return f"{rng.randrange(10)}{''.join(steps)}|"


def solve(prompt: str, tables: Tables) -> str:
    """Return the right answer to a prompt with all its steps, such as `7a3=2;2c1=5`."""
    value, steps = int(prompt[0]), []
    for operator, operand in zip(prompt[1:-1:2], prompt[2:-1:2], strict=True):
        result = int(tables.right[OPERATORS.index(operator), value, int(operand)])
        steps.append(f"{value}{operator}{operand}={result}")
        value = result
    return ";".join(steps)
