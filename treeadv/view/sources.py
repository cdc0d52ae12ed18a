"""The sources of forests: the folder of a run, or an Arrow file of forests. A source changes and locks no file."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from treeadv.errors import BadInput
from treeadv.forest import Floats, Forest
from treeadv.jsonl import JsonMapping, JsonObject
from treeadv.learning.kept import read_log_probs
from treeadv.presets import AdvantageSpec, build_advantage
from treeadv.replay.history import Attempt, History, folder_of
from treeadv.replay.journal import Reader
from treeadv.replay.payloads import PayloadReader
from treeadv.replay.recovery import IMPOSSIBLE, impossible
from treeadv.report.picture import Numbers, Vocabulary
from treeadv.report.vocabulary import run_vocabulary
from treeadv.storage.folder import Folder
from treeadv.storage.lock import in_use
from treeadv.storage.run_folder import RunFolder
from treeadv.view.rows import ForestRow
from treeadv.visible import visible
from treeadv.wire import read_file


class Source(Protocol):
    """Forests, with the tokenizer that decodes them and the advantages that training uses or would use."""

    vocabulary: Vocabulary | Numbers
    advantage: AdvantageSpec

    def stamp(self) -> Hashable:
        """Return a value that changes when the source changes. The call is cheap."""
        ...

    def about(self) -> JsonObject:
        """Return the facts of the page's head as JSON-able values."""
        ...

    def rows(self) -> tuple[list[ForestRow], str]:
        """Return the rows in the order of their draws, and the reason why rows are missing ("" if none is missing)."""
        ...

    def forest(self, key: str) -> Forest:
        """Return the forest of a row. Raises `BadInput` for a forest that cannot be read."""
        ...

    def learner_log_probs(self, key: str) -> Floats | None:
        """Return the learner's log pi [T] of a forest, or None if the run did not keep it. NaN means not computed.

        Raises `BadInput` for a damaged file."""
        ...


class RunSource:
    """The folder of a run. The run may be running, finished or stopped."""

    def __init__(self, path: Path, model: Path | None = None) -> None:
        """Open the folder of a run. Raises `BadInput` for a folder that is no run.

        `model` is a folder with the tokenizer. By default the tokenizer is that of the report."""
        self._folder, self._config = RunFolder.open(path, [])
        self._path = path
        self.vocabulary = Vocabulary(model) if model else run_vocabulary(self._folder, self._config)
        learner = self._config.learner
        self.advantage = build_advantage(learner.preset, learner.advantage)
        self._history = History()
        self._steps: dict[str, int] = {}  # the step that took each forest
        self._payloads: PayloadReader | None = None

    def stamp(self) -> Hashable:
        records = self._path / "metrics.jsonl"
        replay = self._replay()
        journal = tuple(replay.child("journal").sizes(".jsonl").items()) if replay else ()
        return journal, records.stat().st_size if records.is_file() else 0, in_use(self._path)

    def about(self) -> JsonObject:
        config, last, fault = self._config, None, ""
        try:
            for record in self._folder.shown_records():
                last = record
        except BadInput as e:
            fault = str(e)
        done = last is not None and last["step"] >= config.run.steps
        return {
            "name": self._path.resolve().name,
            "state": "running" if in_use(self._path) else "finished" if done else "stopped",
            "step": last["step"] if last else 0,
            "steps": config.run.steps,
            "elapsed_s": last["elapsed_s"] if last else 0.0,
            "model": Path(config.model.path).name,
            "task": visible(config.task.title),
            "preset": config.learner.preset,
            "rule": config.sampling.rule,
            "text": not isinstance(self.vocabulary, Numbers),
            "fault": visible(fault),
        }

    def rows(self) -> tuple[list[ForestRow], str]:
        replay = self._replay()
        if replay is None:
            return [], f"{self._folder.uri} has no journal under replay/journal: the run has drawn nothing yet"
        if self._payloads is None:
            self._payloads = PayloadReader(replay.child("payloads"))
        history, fault = _read(replay)
        states = history.states()
        places = {fid: (step, n) for step, fids in history.steps.items() for n, fid in enumerate(fids)}
        rows = [_row(attempt, states[fid], places.get(fid), history) for fid, attempt in history.attempts.items()]
        self._history, self._steps = history, {fid: step for fid, (step, _) in places.items()}
        return rows, visible(fault)

    def forest(self, key: str) -> Forest:
        attempt = self._history.attempts.get(key)
        if attempt is None or attempt.admitted is None or self._payloads is None:
            raise BadInput(f"{key}: the journal of {self._folder.uri} has no such graded forest")
        return self._payloads.forest(attempt.admitted)

    def learner_log_probs(self, key: str) -> Floats | None:
        step = self._steps.get(key)
        return None if step is None else read_log_probs(self._path, step, key)

    def _replay(self) -> Folder | None:
        try:
            return folder_of(self._path)
        except BadInput:  # the run has just begun
            return None


def _read(replay: Folder) -> tuple[History, str]:
    """Return the readable part of the journal, and the fault at its end ("" for none)."""
    history, reader = History(), None
    try:
        reader = Reader(replay.child("journal"), whole=True)
        for line in reader:
            history.add(line)
    except BadInput as e:
        return history, str(e)
    except IMPOSSIBLE as e:
        return history, str(impossible(reader.seq if reader else 0, e))
    return history, ""


def _row(attempt: Attempt, state: str, place: tuple[int, int] | None, history: History) -> ForestRow:
    reserved, admitted, dropped = attempt.reserved, attempt.admitted, attempt.dropped
    note = f"{dropped.reason}: {dropped.detail}".rstrip(": ") if dropped else ""
    released = admitted is not None and admitted.payload_file in history.released
    if released and not note:
        note = "deleted after training (queue.retain=all keeps it)"
    row = ForestRow(
        key=reserved.forest_id,
        forest_id=reserved.forest_id,
        draw=reserved.draw,
        attempt=reserved.attempt,
        state=state,
        step=place[0] if place else None,
        place=place[1] if place else None,
        note=visible(note),
        readable=admitted is not None and not released,
    )
    if admitted is None:
        return row
    return replace(
        row,
        leaves=admitted.leaves,
        tokens=admitted.tokens,
        versions=(admitted.oldest_version, admitted.newest_version),
        reward=admitted.reward,
    )


class FileSource:
    """An Arrow file of forests, which `treeadv generate` or `treeadv.write_forests` wrote."""

    def __init__(self, path: Path, model: Path | None = None, preset: str = "treeadv") -> None:
        """Read the file. Raises `BadInput` for another kind of file, or an unknown preset."""
        self._path = path
        self._forests, named = read_file(path)
        folder = model or (Path(named) if named and has_tokenizer(Path(named)) else None)
        self.vocabulary = Vocabulary(folder) if folder else Numbers()
        self.advantage = build_advantage(preset)
        self._about: JsonMapping = {"model": Path(named).name, "preset": preset}

    def stamp(self) -> Hashable:
        return None  # the file is read only once

    def about(self) -> JsonObject:
        named = not isinstance(self.vocabulary, Numbers)
        return {"name": self._path.name, "state": "file", "text": named, "fault": "", **self._about}

    def rows(self) -> tuple[list[ForestRow], str]:
        return [
            ForestRow(
                key=str(n),
                forest_id=f.forest_id,
                draw=n,
                attempt=0,
                state="file",
                leaves=f.leaves,
                tokens=f.tokens,
                versions=(f.oldest_version, f.newest_version),
                reward=float(f.reward[f.judged].mean()) if f.judged.any() else None,
                readable=True,
            )
            for n, f in enumerate(self._forests)
        ], ""

    def forest(self, key: str) -> Forest:
        if not key.isdecimal() or int(key) >= len(self._forests):
            raise BadInput(f"{key}: {self._path} has {len(self._forests)} forests, counted from 0")
        return self._forests[int(key)]

    def learner_log_probs(self, key: str) -> None:
        """Return None, because a file of forests has only the log-probabilities of the engine."""


def has_tokenizer(folder: Path) -> bool:
    """Return whether the folder has a tokenizer.

    Returns False for a path that cannot be a folder, because a file of forests may name any path."""
    try:
        return (folder / "tokenizer.json").is_file()
    except OSError:
        return False


def open_source(path: Path, model: Path | None = None, preset: str | None = None) -> Source:
    """Return the source at a path, which is the folder of a run or an Arrow file.

    `preset` is the preset for a file. A run has its own preset. Raises `BadInput`."""
    if path.is_dir():
        if not (path / "config.yaml").is_file() and (files := sorted(path.glob("*.arrow"))):
            raise BadInput(f"{path} is a folder and no run; give a file of forests, such as {files[0]}")
        if preset is not None:
            raise BadInput(f"--preset {preset}: {path} is a run, whose own preset is shown; remove --preset")
        return RunSource(path, model)
    if not path.exists():
        raise BadInput(f"{path}: no such file or run folder")
    return FileSource(path, model, preset or "treeadv")
