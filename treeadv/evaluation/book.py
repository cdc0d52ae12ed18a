"""The evaluations of one run: their records and the best weights, both in the run folder."""

from __future__ import annotations

from collections.abc import Sequence

from treeadv.config import Config
from treeadv.evaluation.history import best, early_end, is_due
from treeadv.evaluation.scores import Score
from treeadv.jsonl import JsonObject
from treeadv.storage.run_folder import RunFolder


class EvaluationBook:
    """The reader and writer of the records. A resumed run evaluates its step again if the step has no record."""

    def __init__(self, config: Config, folder: RunFolder) -> None:
        self._config, self._folder = config, folder
        self._records = folder.evaluations(folder.last_checkpoint())

    @property
    def records(self) -> Sequence[JsonObject]:
        """Return the records of the evaluations so far, in the order of their steps."""
        return self._records

    def lacks(self, step: int) -> bool:
        """Return whether the weights after `step` must be evaluated: an evaluation of the step is due and has no
        record."""
        return is_due(self._config, step) and all(r["step"] != step for r in self._records)

    def add(self, step: int, version: int, seconds: float, score: Score) -> JsonObject:
        """Write the record of an evaluation and return it. Keep the weights if they are the best so far."""
        record = {"step": step, "version": version, "seconds": seconds, **score.to_json()}
        self._folder.record_evaluation(record)
        self._records.append(record)
        self.keep_best()
        return record

    def keep_best(self) -> None:
        """Copy the checkpoint of the best step to RUN/best, if the checkpoint exists and RUN/best holds another step.

        Step 0 has no checkpoint. Its weights are in the folder of the model."""
        found = best(self._records)
        if found and found["step"] in self._folder.checkpoints() and self._folder.store.best_step() != found["step"]:
            self._folder.store.keep_best(found["step"], found)

    @property
    def early_end(self) -> str:
        """Return the reason to end the run before its last step; "" if there is none."""
        return early_end(self._config, self._records)
