"""The records of a run in one process."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from treeadv.engines.base import Engine, EngineStats
from treeadv.jsonl import JsonMapping, JsonObject
from treeadv.learning.report import StepReport
from treeadv.local.steps import StepForests
from treeadv.report.progress import Progress
from treeadv.report.records import Totals, step_record, write_summary
from treeadv.storage.run_folder import RunFolder


class LocalRecorder:
    """The reporter of a run in one process. It writes and shows one record for each step."""

    def __init__(self, folder: RunFolder, progress: Progress, engine: Engine) -> None:
        last = folder.last_record()
        self._folder, self._progress, self._engine = folder, progress, engine
        self._totals = Totals.of(last)
        self._elapsed = last["elapsed_s"] if last else 0.0
        self._started = self._last_record = time.monotonic()
        self._counted = EngineStats()
        self._phases: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure the duration of a phase of a step."""
        began = time.monotonic()
        yield
        self._phases[name] = self._phases.get(name, 0.0) + time.monotonic() - began

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Measure the duration of an evaluation. What the engine draws during an evaluation counts for no step."""
        began = time.monotonic()
        with self.phase("evaluate"):
            yield
        self._counted = self._engine.stats()
        self._last_record += time.monotonic() - began

    def show_evaluation(self, record: JsonMapping | None) -> None:
        """Show the record of an evaluation. `record` is None for an interrupted evaluation, which is not shown."""
        if record is not None:
            self._progress.show_evaluation(record)

    def record(self, step: int, report: StepReport, steps: StepForests) -> None:
        """Write the record of one step."""
        now, stats, before, counts = time.monotonic(), self._engine.stats(), self._counted, steps.counts()
        drawn = {
            "tokens_generated": stats.decoded_tokens - before.decoded_tokens,
            "prompt_tokens": stats.prompt_tokens - before.prompt_tokens,
            "cached_tokens": stats.cached_tokens - before.cached_tokens,
            "busy_seconds": stats.busy_seconds - before.busy_seconds,
            "tau": steps.tau,
        }
        self._totals.add(drawn, report)
        record = step_record(
            step=step, elapsed=self._elapsed + now - self._started, duration=now - self._last_record, report=report,
            totals=self._totals, drawn=drawn, counts=counts, phases=self._phases,
        )  # fmt: skip
        self._folder.record(record)
        self._progress.update(record)
        self._phases, self._last_record, self._counted = {}, now, stats

    def summary(self, final_states: Mapping[str, int]) -> JsonObject:
        """Write summary.json and return its content. `final_states` counts forests by state."""
        return write_summary(self._folder, final_states)
