"""Reads the files of a run repeatedly, during the run or after its end. It changes no file."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path

from treeadv.config import Config
from treeadv.errors import BadInput, one_line
from treeadv.forest import Forest
from treeadv.jsonl import JsonMapping, JsonObject, read_json
from treeadv.learning.advantage import advantages
from treeadv.presets import build_advantage
from treeadv.replay.history import last_forest
from treeadv.report.overview import run_state
from treeadv.report.picture import Picture, picture
from treeadv.report.vocabulary import run_vocabulary
from treeadv.storage.record_fields import CHECKS, DAMAGED, check_shown, parse_record
from treeadv.storage.run_folder import RunFolder

KEPT = 400  # number of last records in memory


class Tail:
    """A reader of a growing file of JSON lines. It reads each line once."""

    def __init__(self, path: Path) -> None:
        self._path, self._file, self._offset, self._lines = path, 0, 0, 0

    def read(self) -> tuple[bool, list[JsonObject]]:
        """Return (whether the file was replaced or cut since the last call, the new records). An incomplete last line
        is read by a later call. Raises `BadInput` for a damaged line."""
        if not self._path.is_file():
            return False, []
        with self._path.open("rb") as file:
            at = self._path.stat()
            fresh = at.st_ino != self._file or at.st_size < self._offset
            if fresh:
                self._file, self._offset, self._lines = at.st_ino, 0, 0
            file.seek(self._offset)
            return fresh, list(self._parsed(file.readlines()))

    def _parsed(self, lines: list[bytes]) -> Iterator[JsonObject]:
        for line in lines:
            if not line.endswith(b"\n"):
                return
            self._offset, self._lines = self._offset + len(line), self._lines + 1
            try:
                record = parse_record(line)
                CHECKS[self._path.name](record)
            except DAMAGED as e:
                raise BadInput(f"{self._path}: line {self._lines} is damaged ({one_line(e)}); restore the file") from e
            yield record


class RunView:
    """The content of the files of a run at the last call of `refresh`."""

    def __init__(self, path: Path) -> None:
        """Open the run and read its files. Raises `BadInput` if `path` is no run; the message lists the runs in that
        folder."""
        self.folder, self.config = RunFolder.open(path, [])
        self.path = path
        self.records: deque[JsonMapping] = deque(maxlen=KEPT)
        self.evaluations: list[JsonMapping] = []
        self.actors: Counter[str] = Counter()  # number of actors by role; empty for a run in one process
        self.state = "stopped"  # running, finished or stopped
        self.ended = False  # whether the run wrote the summary of its end
        self.forest: Picture | None = None  # the forest that was admitted last
        self.fault = ""  # the reason why a part cannot be shown
        self._steps, self._evaluated = Tail(path / "metrics.jsonl"), Tail(path / "evaluations.jsonl")
        self._vocabulary = run_vocabulary(self.folder, self.config)
        self.refresh()

    @property
    def last(self) -> JsonMapping:
        """Return the record of the last step; {} if there is no record."""
        return self.records[-1] if self.records else {}

    @property
    def local(self) -> bool:
        """Return whether the run is in one process."""
        return not (self.path / "targets.json").is_file()

    def refresh(self) -> None:
        """Read the new content of the files."""
        faults = []
        grown = False
        for tail, records in ((self._steps, self.records), (self._evaluated, self.evaluations)):
            try:
                fresh, new = tail.read()
                for record in new if records is self.records else ():
                    check_shown(record, self.path / "metrics.jsonl")
            except BadInput as e:
                faults.append(str(e))
                continue
            if fresh:
                records.clear()
            records.extend(new)
            grown |= bool(new)
        self.state = run_state(self.path, self.config, self.last.get("step", 0))
        self.ended = (self.path / "summary.json").is_file()
        try:
            self.actors = self._up()
        except BadInput as e:
            faults.append(str(e))
        if grown or self.forest is None:
            try:
                self.forest = self._picture(last_forest(self.path))
            except BadInput as e:
                faults.append(str(e))
        self.fault = "; ".join(faults)

    def _up(self) -> Counter[str]:
        path = self.path / "targets.json"
        if self.state != "running" or not path.is_file():
            return Counter()
        try:
            return Counter(target["labels"]["role"] for target in read_json(path))
        except DAMAGED as e:
            remedy = "the driver writes it again when an actor starts"
            raise BadInput(f"{path}: names no actors ({type(e).__name__}); {remedy}") from e

    def _picture(self, forest: Forest | None) -> Picture | None:
        if forest is None:
            return None
        learner = self.config.learner
        judged = forest.graded and bool(forest.judged.any())
        found = advantages(forest, build_advantage(learner.preset, learner.advantage))[0] if judged else None
        return picture(forest, self._vocabulary, found)


def actor_counts(config: Config) -> dict[str, int]:
    """Return the number of actors that a configuration asks for, by role."""
    counted = {"generator": config.generator.count, "reward": config.reward.count, "learner": config.learner.count}
    return {"driver": 1, **counted, "queue": 1}
