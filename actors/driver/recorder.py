"""What a run says of itself while it goes: metrics.jsonl, the driver's /metrics, the display, and the summary at its end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from statistics import fmean
from typing import Any

from ray.exceptions import RayActorError

from actors.driver.cluster import Cast
from actors.driver.worker_group import Crew
from treeadv.metrics import Exporter
from treeadv.report.progress import Progress
from treeadv.storage.run_folder import RunFolder

DRAWN = ("tokens_generated", "prompt_tokens", "cached_tokens")  # totals that the engines count


class Recorder:
    """One record an optimizer step. Times are in seconds of wall clock, tokens are totals of the run."""

    def __init__(self, folder: RunFolder, progress: Progress, health: asyncio.Event) -> None:
        """`health` is set while the run has a whole cast."""
        self.folder, self.progress = folder, progress
        self.exporter = Exporter("driver", lambda: None if health.is_set() else "the cast is not whole", refresh=self._crews)
        self._cast: Cast | None = None
        self._address = ""
        self._states: dict[str, int] | None = None
        self.staleness = 0  # the largest of the last step
        self._waited, self._missed = 0.0, 0
        self._waiting: float | None = None  # since when, while it waits
        self._restarts: dict[Crew, int] = {}
        self._seconds: dict[str, float] = {}
        self._seen: dict[str, dict[str, float]] = {}  # generator -> its totals at the last record
        self._totals: dict[str, float] = {}
        before = folder.records()
        self._elapsed = before[-1]["elapsed_s"] if before else 0.0
        self._started = self._last = time.monotonic()

    def serve(self, cast: Cast) -> None:
        """Go on with a cast from the last step on record; serve the driver's /metrics where its configuration says, once."""
        before = self.folder.records()
        self._totals = {k: before[-1][k] if before else 0 for k in (*DRAWN, "tokens_trained", "tokens_expanded")}
        self._seen = {}  # its generators count from 0 and may bear the names of earlier ones
        self._address = self._address or self.exporter.serve(cast.config.metrics.host, cast.config.metrics.port)
        self._cast, self._restarts, self._missed = cast, {}, 0
        self.exporter.set("treeadv_run_steps", cast.config.run.steps)
        cast.serve_driver(self._address)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a part of a step."""
        began = time.monotonic()
        if name == "wait":
            self._waiting = began
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.monotonic() - began
            if name == "wait":
                self._waited, self._waiting = self.waited(), None

    def waited(self) -> float:
        """Seconds that the learner waited for forests since the last call, those of a wait that still lasts too."""
        now = time.monotonic()
        seconds, self._waited = self._waited, 0.0
        if self._waiting is not None:
            seconds, self._waiting = seconds + now - self._waiting, now
        return seconds

    def _crews(self) -> None:
        """Show how many actors of each role there are, are wanted, and were replaced, when somebody asks."""
        cast = self._cast
        if cast is None:
            return
        for crew in (cast.generators, cast.rewards):
            self.exporter.set("treeadv_actors", len(crew.members), role=crew.role)
            self.exporter.set("treeadv_actors_wanted", crew.wanted, role=crew.role)
            self.exporter.add("treeadv_actor_restarts_total", crew.restarts - self._restarts.get(crew, 0), role=crew.role)
            self._restarts[crew] = crew.restarts
        self.exporter.add("treeadv_weight_sync_failures_total", cast.missed_updates - self._missed)
        self._missed = cast.missed_updates
        learners = [name for name, (role, _) in cast.targets.items() if role == "learner"]
        self.exporter.set("treeadv_actors", len(learners), role="learner")
        self.exporter.set("treeadv_actors_wanted", cast.learners_wanted, role="learner")

    async def record(self, cast: Cast, step: int, report: Any) -> None:
        """Put one step on record. `report` is the learner's (treeadv.learning.trainer.StepReport)."""
        counts, drawn = await asyncio.gather(cast.queue.counts.remote(), self._drawn(cast))
        now = time.monotonic()
        learner = {k: v for k, v in asdict(report).items() if k not in ("staleness", "seconds", "tokens", "expanded_tokens")}
        for key in DRAWN:
            self._totals[key] += drawn[key]
        self._totals["tokens_trained"] += report.tokens
        self._totals["tokens_expanded"] += report.expanded_tokens
        record = {
            "step": step, "version": step, "elapsed_s": self._elapsed + now - self._started, **learner, **self._totals,
            "forests": counts["states"], "sharing": 1 - report.tokens / report.expanded_tokens,
            "staleness_mean": fmean(report.staleness), "staleness_max": max(report.staleness),
            "tau": drawn["tau"], "decode_tokens_per_s": drawn["tokens_generated"] / (now - self._last),
            "generator_busy_s": drawn["busy_seconds"],
            "seconds": self._seconds | report.seconds,
        }
        if drawn["prompt_tokens"]:  # no branch may have begun in this step
            record["prefix_reuse"] = drawn["cached_tokens"] / drawn["prompt_tokens"]
        self._export(record, now - self._last, cast.weight_bytes)
        self.folder.record(record)
        self.progress.update(record)
        self._seconds, self._last, self.staleness = {}, now, record["staleness_max"]

    async def settle(self, cast: Cast) -> None:
        """Note where the forests stand at the end, for the summary: after the last checkpoint, which comes after the last record."""
        self._states = (await cast.queue.counts.remote())["states"]

    async def _drawn(self, cast: Cast) -> dict[str, float]:
        """What all generators drew since the last record; one that died keeps what it had reported."""
        members = list(cast.generators.names)
        names = [cast.generators.names[m] for m in members]
        stats = await asyncio.gather(*(m.stats.remote() for m in members), return_exceptions=True)
        out, answered = dict.fromkeys((*DRAWN, "busy_seconds", "tau"), 0.0), 0
        for name, now in zip(names, stats, strict=True):
            if isinstance(now, RayActorError):
                continue
            if isinstance(now, BaseException):
                raise now
            answered += 1
            before = self._seen.get(name, {})
            for key in out:
                out[key] += now[key] - (before.get(key, 0.0) if key != "tau" else 0.0)
            self._seen[name] = now
        out["tau"] /= max(answered, 1)
        return out

    def _export(self, record: dict[str, Any], seconds: float, weight_bytes: int) -> None:
        e = self.exporter
        e.add("treeadv_steps_total")
        e.set("treeadv_policy_version", record["version"])
        e.observe("treeadv_step_seconds", seconds)
        e.set("treeadv_reward_mean", record["reward_mean"])
        e.add("treeadv_learner_wait_seconds_total", record["seconds"]["wait"])
        e.observe("treeadv_weight_sync_seconds", record["seconds"]["publish"])
        e.add("treeadv_weight_sync_bytes_total", weight_bytes)

    def summary(self) -> dict[str, Any]:
        """Figures of the whole run from its records; written as summary.json."""
        records = self.folder.records()
        if not records:
            return {"steps": 0}
        fifth = max(1, len(records) // 5)
        last = records[-1]
        phases = {k for r in records for k in r["seconds"]}
        summary = {
            "steps": last["step"], "elapsed_s": last["elapsed_s"],
            "reward_first_fifth": fmean(r["reward_mean"] for r in records[:fifth]),
            "reward_last_fifth": fmean(r["reward_mean"] for r in records[-fifth:]),
            "tokens_generated": last["tokens_generated"], "tokens_trained": last["tokens_trained"],
            "tokens_expanded": last["tokens_expanded"], "sharing_trained": 1 - last["tokens_trained"] / last["tokens_expanded"],
            "prefix_reuse": last["cached_tokens"] / max(1, last["prompt_tokens"]),  # 0: every generator died before it could report
            "staleness_mean": fmean(r["staleness_mean"] for r in records), "staleness_max": max(r["staleness_max"] for r in records),
            "seconds": {k: sum(r["seconds"].get(k, 0.0) for r in records) for k in sorted(phases)}
            | {"generators_busy": sum(r["generator_busy_s"] for r in records)},
            "forests": self._states or last["forests"], "run": str(self.folder.path),
        }
        self.folder.write("summary.json", summary)
        return summary
