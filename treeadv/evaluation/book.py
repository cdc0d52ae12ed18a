"""The evaluations of one run: records in the run folder, and the best weights kept beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from treeadv.config import Config
from treeadv.evaluation.history import best, early_end, is_due
from treeadv.evaluation.scores import Score
from treeadv.storage.run_folder import RunFolder


class EvaluationBook:
    """Knows what was evaluated. A run that is resumed evaluates its step again unless that is on record."""

    def __init__(self, config: Config, folder: RunFolder) -> None:
        self._config, self._folder = config, folder
        self._records = folder.evaluations(folder.last_checkpoint())

    @property
    def records(self) -> Sequence[dict[str, Any]]:
        """The evaluations so far, in the order of their steps."""
        return self._records

    def lacks(self, step: int) -> bool:
        """Whether the weights after `step` are to be evaluated and are not on record."""
        return is_due(self._config, step) and all(r["step"] != step for r in self._records)

    def add(self, step: int, version: int, seconds: float, score: Score) -> dict[str, Any]:
        """Write the record of an evaluation and return it. Its weights are kept if they are the best so far."""
        record = {"step": step, "version": version, "seconds": seconds, **score.to_json()}
        self._folder.record_evaluation(record)
        self._records.append(record)
        self.keep_best()
        return record

    def keep_best(self) -> None:
        """Bring RUN/best up to date, as far as the checkpoint of the best step still exists. Step 0 has none: the
        folder of the model holds its weights."""
        found = best(self._records)
        if found and found["step"] in self._folder.checkpoints() and self._folder.store.best_step() != found["step"]:
            self._folder.store.keep_best(found["step"], found)

    @property
    def early_end(self) -> str:
        """Why the run ends before its last step; "" while it goes on."""
        return early_end(self._config, self._records)
