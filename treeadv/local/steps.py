"""The forests of each step of a local run, in the order of the draws. The replay queue records these forests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from treeadv.config import Config
from treeadv.data.tasks import problem_source
from treeadv.data.tickets import Ticket
from treeadv.errors import BadInput, one_line
from treeadv.forest import Forest
from treeadv.jsonl import JsonMapping
from treeadv.learning.trainer import Trainer
from treeadv.local.rollouts import ForestMaker
from treeadv.local.serving import Serving
from treeadv.replay.figures import figures
from treeadv.replay.live import State
from treeadv.replay.records import DropReason, Leased, Reserved
from treeadv.replay.store import ReplayStore
from treeadv.sampling.threshold import Threshold
from treeadv.seeds import derive
from treeadv.storage.run_folder import RunFolder
from treeadv.wire import from_batch, to_batch

FAILURES = 1000  # the run ends after this many forests in a row that failed or were dropped
_THRESHOLD = "local/threshold.npy"


class StepForests:
    """The source of the forests of each step of a local run.

    A local run has the same files as a run with Ray, with the same guarantees: journal, payload files and
    checkpoints."""

    def __init__(self, config: Config, folder: RunFolder, maker: ForestMaker, first_step: int) -> None:
        """Open the queue. `first_step` is the step of the checkpoint to resume from; 0 for a new run."""
        self._config, self._folder, self._maker = config, folder, maker
        self._problems = problem_source(config.task, config.run.seed)
        self._threshold = Threshold(config.sampling)
        self._session = folder.store.next_session()
        per_step, seed = config.learner.forests_per_step, config.run.seed
        self._store = ReplayStore(
            folder.uri, config.queue, forests_per_step=per_step, seed=seed, session=self._session, step=first_step,
            versions_per_step=config.learner.updates_per_step,
        )  # fmt: skip
        self._lease: Leased | None = None
        self._failures = 0  # number of failed forests in a row

    async def forests(self, version: int) -> list[Forest]:
        """Return the forests of the step that starts from `version`, in the order of their draws.

        A step that a resume has undone gets the same forests again. Any other step gets new forests."""
        count = self._config.learner.forests_per_step
        while (lease := self._store.lease(count, version)) is None:
            for forest in await self._maker.make(self._tickets(count)):
                if self._store.admit(forest.forest_id, to_batch([forest])) == "admitted":
                    self._failures = 0
                else:
                    self._count_failure(f"forest {forest.forest_id} was not admitted (treeadv audit tells why)")
        self._lease = lease
        ordered = sorted(lease.forest_ids, key=lambda fid: self._store.ledger.live[fid].reserved.draw)
        forests = [forest for fid in ordered for forest in from_batch(self._store.payload(fid))]
        for forest in forests:
            self._threshold.observe(forest.entropy)
        return forests

    def acknowledge(self, step: int, skipped: Sequence[str]) -> None:
        """Record that optimizer step `step` has trained its forests, except those `skipped`."""
        assert self._lease is not None, "a step has forests"
        self._store.ack(self._lease.lease_id, step, skipped)
        if self._config.queue.fsync != "none":
            self._store.sync()

    def discard(self, reason: DropReason, detail: str) -> None:
        """Drop the forests of a step that the learner cannot train."""
        assert self._lease is not None, "a step has forests"
        self._store.discard(self._lease.lease_id, reason, detail)

    def checkpoint(self, step: int, trainer: Trainer, serving: Serving) -> None:
        """Make `step` durable, then record that its forests are trained."""

        def write_files(folder: Path) -> None:
            trainer.write_files(folder)
            serving.write_files(folder)
            np.save(folder / _THRESHOLD, self._threshold.to_state())

        self._folder.store.push()
        self._folder.store.write_checkpoint(step, self._session, write_files)
        self._store.files.lock.check()
        self._folder.store.seal(step, self._session, self._config.run.keep_checkpoints)
        self._store.commit(step, min(self._folder.checkpoints()))
        self._store.sync()
        self._store.compact()

    def restore(self, checkpoint: Path) -> None:
        """Read the fork threshold from a checkpoint. A checkpoint of a run with Ray has no threshold."""
        if (checkpoint / _THRESHOLD).is_file():
            self._threshold.restore(np.load(checkpoint / _THRESHOLD, allow_pickle=False))

    @property
    def tau(self) -> float:
        """Return the fork threshold of the next step, in nats."""
        return self._threshold.tau

    def counts(self) -> JsonMapping:
        """Return the figures of the queue (`treeadv.replay.figures.figures`)."""
        return figures(self._store)

    def states(self) -> dict[str, int]:
        """Return the number of forests by state."""
        return dict(self.counts()["states"])

    def close(self) -> None:
        self._store.close()

    def _tickets(self, count: int) -> list[Ticket]:
        """Return tickets for the missing forests of a step of `count` forests. A prompt that is too long counts as
        failed."""
        tickets = []
        for _ in range(count - len(self._store.ledger.in_state(State.READY))):
            record = self._reserve()
            assert record is not None, "the queue has a slot for every forest of a step"
            if reason := self._maker.refusal(self._problems[record.draw]):
                self._store.fail(record.forest_id, reason)
                self._count_failure(reason)
            else:
                tickets.append(self._ticket(record))
        return tickets

    def _reserve(self) -> Reserved | None:
        """Reserve the next draw that has a prompt."""
        problem = None
        while problem is None:
            try:
                problem = self._problems[self._store.next_draws(1)[0]]
            except Exception as e:  # the source is code of a library or a user; any error of it fails only this draw
                self._store.skip_draw(f"{type(e).__name__}: {one_line(e)}")
        return self._store.reserve("local", "", lambda _: problem.id)

    def _count_failure(self, reason: str) -> None:
        self._failures += 1
        if self._failures >= FAILURES:
            raise BadInput(f"{self._failures} forests in a row failed; the last reason: {reason}")

    def _ticket(self, record: Reserved) -> Ticket:
        # The seed depends on failures and not on attempts, so the run draws an interrupted forest again without change.
        seed = derive(self._config.run.seed, record.draw, record.failures)
        problem = self._problems[record.draw]
        return Ticket(
            forest_id=record.forest_id,
            draw=record.draw,
            attempt=record.attempt,
            problem=problem,
            seed=seed,
            tau=self.tau,
        )
