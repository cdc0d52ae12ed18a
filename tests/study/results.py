"""A study of two arms, and results in the form in which its cells write them."""

from __future__ import annotations

from typing import Any

from treeadv.study.spec import Study

SEEDS = (1, 2, 3, 4, 5)
TREE: dict[str, Any] = {
    "name": "small",
    "question": "Does it help?",
    "base": {"task": {"source": "operator-tables"}, "model": {"path": "m"}},
    "arms": {"grpo": {"learner.preset": "grpo"}, "treeadv": {"learner.preset": "treeadv"}},
    "seeds": list(SEEDS),
    "budget": {"steps": 4},
    "look_every": 2,
    "development": {"seed": 901, "problems": 8},
    "test": {"seed": 902, "problems": 8},
    "analysis": {
        "baseline": "grpo",
        "target_accuracy": 0.5,
        "comparisons": [
            {"claim": "higher", "arm": "treeadv", "against": "grpo"},
            {"claim": "cheaper", "arm": "treeadv", "against": "grpo", "metric": "tokens_generated"},
        ],
    },
}


def study(**changes: Any) -> Study:
    return Study.model_validate(TREE | changes)


def done(row: str, seed: int, accuracy: float, looks: list[tuple[float, float]] | None = None) -> dict[str, Any]:
    looks = looks or [(0, 0.2), (1000.0, accuracy)]
    series = {"tokens_generated": [looks[-1][0]], "zero_variance": [0.25], "sharing": [0.1]}
    return {
        "row": row, "seed": seed, "status": "done", "seconds": 60.0,
        "test": {"accuracy": accuracy, "tokens_mean": 30.0},
        "looks": [{"tokens_generated": x, "accuracy": y, "tokens_mean": 30.0} for x, y in looks], "series": series,
    }  # fmt: skip


def failed(row: str, seed: int) -> dict[str, Any]:
    return {"row": row, "seed": seed, "status": "failed", "reason": "the loss is not finite"}
