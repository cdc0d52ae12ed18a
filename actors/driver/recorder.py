"""The reports on a run. The recorder writes metrics.jsonl and the summary, serves the /metrics of the driver, and
updates the display."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from actors.driver.cluster import Cluster
from actors.driver.liveness import ACTOR_LOST
from treeadv.evaluation.history import best
from treeadv.jsonl import JsonObject
from treeadv.learning.report import StepReport
from treeadv.metrics import Exporter
from treeadv.report.progress import Progress
from treeadv.report.records import ENGINE_TOTALS, Totals, step_record, write_summary
from treeadv.storage.run_folder import RunFolder

STATS_SECONDS = 5.0  # time that a generator may take to report its totals


class Recorder:
    """The reporter of a run. It writes one record for each step. Times are seconds of wall clock. Token counts are
    totals of the run."""

    def __init__(self, folder: RunFolder, progress: Progress) -> None:
        self.folder, self.progress = folder, progress
        self.healthy = False  # whether all actors of the run are up; /healthz reports this
        self.staleness = 0  # largest staleness of the last step, in versions
        self._exporter = Exporter(
            "driver", lambda: None if self.healthy else "not all actors are up", refresh=self._export_groups
        )
        self._address = ""
        self._cluster: Cluster | None = None
        self._ended = False  # whether the run has ended on purpose
        self._final_states: dict[str, int] | None = None
        self._waited = 0.0  # seconds of the waits that have ended
        self._wait_began: float | None = None
        self._restarts: dict[str, int] = {}  # role -> restarts of this cluster that are already exported
        self._missed_updates = self._skipped = 0  # missed updates and skipped evaluations that are already exported
        self._phases: dict[str, float] = {}
        self._reported: dict[str, dict[str, float]] = {}  # generator -> totals at the last record
        self._totals = Totals()
        self.resumed = False  # whether the run was accepted; the records then end at the checkpoint
        self._elapsed = 0.0  # seconds that earlier drivers spent on the run
        self._started = self._last_record = time.monotonic()

    def follow(self, cluster: Cluster) -> None:
        """Report on a new cluster from now on. The first call starts to serve the driver's /metrics."""
        self._reported = {}  # new generators count from 0 and may reuse names
        self._address = self._address or self._exporter.serve(cluster.config.metrics.host, cluster.config.metrics.port)
        self._cluster, self._restarts, self._missed_updates, self._skipped = cluster, {}, 0, 0
        self._exporter.set("treeadv_run_steps", cluster.config.run.steps)
        cluster.targets.add("driver", "driver", self._address)

    def count_loss(self) -> None:
        """Count one resume from the last checkpoint. The cause is the death of the queue or of a learner."""
        self._exporter.add("treeadv_resumes_total")

    def resume(self) -> None:
        """Continue from the totals in the last record."""
        last = self.folder.last_record()
        self._totals = Totals.of(last)
        if not self.resumed and last:
            self._elapsed = last["elapsed_s"]
        self.resumed = True

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure the time of one phase of a step."""
        began = time.monotonic()
        if name == "wait":
            self._wait_began = began
        try:
            yield
        finally:
            seconds = time.monotonic() - began
            self._phases[name] = self._phases.get(name, 0.0) + seconds
            if name == "wait":
                self._waited, self._wait_began = self._waited + seconds, None

    @property
    def waited_seconds(self) -> float:
        """Return the seconds that the learner has waited for forests so far. A wait that still lasts is included."""
        return self._waited + (time.monotonic() - self._wait_began if self._wait_began is not None else 0.0)

    async def record(self, cluster: Cluster, step: int, report: StepReport) -> None:
        """Write the record of one step."""
        counts, drawn = await asyncio.gather(cluster.queue.counts.remote(), self._drawn(cluster))
        now = time.monotonic()
        self._totals.add(drawn, report)
        record = step_record(
            step=step, elapsed=self._elapsed + now - self._started, duration=now - self._last_record, report=report,
            totals=self._totals, drawn=drawn, counts=counts, phases=self._phases,
        )  # fmt: skip
        self._export_step(record, now - self._last_record, cluster.weights.size)
        self.folder.record(record)
        self.progress.update(record)
        self._phases, self._last_record, self.staleness = {}, now, record["staleness_max"]

    def show_evaluation(self, record: JsonObject) -> None:
        """Show the record of an evaluation and export it."""
        self.progress.show_evaluation(record)
        e = self._exporter
        for name, found in record["sets"].items():
            e.set("treeadv_eval_correct_ratio", found["avg"]["value"], set=name)
            e.set("treeadv_eval_answer_tokens", found["tokens_mean"], set=name)
            e.set("treeadv_eval_cut_ratio", found["cut"], set=name)
        e.set("treeadv_eval_last_step", record["step"])
        e.observe("treeadv_eval_seconds", record["seconds"])

    async def note_final_states(self, cluster: Cluster) -> None:
        """Keep the final states of the forests for the summary. The last checkpoint changes the states after the last
        record."""
        self._final_states = (await cluster.queue.counts.remote())["states"]

    async def _drawn(self, cluster: Cluster) -> dict[str, float]:
        """Return the sums over all generators of what they drew since the last record. A dead or hung generator adds
        nothing."""
        members = list(cluster.generators.names.items())
        waits = (asyncio.wait_for(m.stats.remote(), STATS_SECONDS) for m, _ in members)
        answers = await asyncio.gather(*waits, return_exceptions=True)
        sums, answered = dict.fromkeys((*ENGINE_TOTALS, "busy_seconds", "tau"), 0.0), 0
        for (_, name), stats in zip(members, answers, strict=True):
            if isinstance(stats, (*ACTOR_LOST, TimeoutError)):
                continue
            if isinstance(stats, BaseException):
                raise stats
            answered += 1
            before = self._reported.get(name, {})
            for key in sums:
                sums[key] += stats[key] - (before.get(key, 0.0) if key != "tau" else 0.0)
            self._reported[name] = stats
        sums["tau"] /= max(answered, 1)
        return sums

    def _export_step(self, record: JsonObject, seconds: float, weight_bytes: int) -> None:
        e = self._exporter
        e.add("treeadv_steps_total")
        e.set("treeadv_policy_version", record["version"])
        # A step whose updates were all skipped leaves the version as it is. The difference is the number of steps left.
        if self._cluster is not None:
            left = self._cluster.config.run.steps - record["step"]
            e.set("treeadv_run_steps", record["version"] + left)
        e.observe("treeadv_step_seconds", seconds)
        e.set("treeadv_reward_mean", record["reward_mean"])
        e.add("treeadv_learner_wait_seconds_total", record["seconds"]["wait"])
        e.observe("treeadv_weight_sync_seconds", record["seconds"]["publish"])
        e.add("treeadv_weight_sync_bytes_total", weight_bytes)

    def _export_groups(self) -> None:
        """Export the number of actors of each role that are up, that should be up, and that were replaced, and the lag
        of the generators. The exporter calls this method before each scrape."""
        cluster, e = self._cluster, self._exporter
        if self._ended:
            return self._export_end()
        if cluster is None:
            return
        for group in (cluster.generators, cluster.rewards):
            e.set("treeadv_actors", len(group.members), role=group.role)
            e.set("treeadv_actors_target", group.target_count, role=group.role)
            e.add("treeadv_actor_restarts_total", group.restarts - self._restarts.get(group.role, 0), role=group.role)
            self._restarts[group.role] = group.restarts
        e.add("treeadv_weight_sync_failures_total", cluster.weights.missed_updates - self._missed_updates)
        self._missed_updates = cluster.weights.missed_updates
        e.set("treeadv_generator_lag_versions", cluster.weights.lag(cluster.generators))
        if found := best(cluster.evaluations.book.records):
            e.set("treeadv_eval_best_step", found["step"])
        e.add("treeadv_evals_skipped_total", cluster.evaluations.skipped - self._skipped)
        self._skipped = cluster.evaluations.skipped
        e.set("treeadv_actors", cluster.targets.count()["learner"], role="learner")
        e.set("treeadv_actors_target", cluster.learners.target_count, role="learner")

    async def end(self) -> None:
        """Export that the run has ended on purpose: no step is left, and no actor is planned. Wait until Prometheus has
        read this. Otherwise its last figures would be those of a run whose driver died."""
        self._ended, since = True, time.monotonic()
        while time.monotonic() < self._exporter.scrapers.expected_until(since):
            await asyncio.sleep(0.1)

    def _export_end(self) -> None:
        last = self.folder.last_record()
        for name in ("treeadv_policy_version", "treeadv_run_steps"):
            self._exporter.set(name, last["version"] if last else 0)
        for role in ("generator", "reward", "learner"):
            for name in ("treeadv_actors", "treeadv_actors_target"):
                self._exporter.set(name, 0, role=role)

    def summary(self) -> JsonObject:
        """Compute the figures of the whole run from its records and write them to summary.json."""
        last = math.inf if self.resumed else self.folder.last_checkpoint()
        return write_summary(self.folder, self._final_states, last)
