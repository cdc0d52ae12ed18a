"""The folder of a run on this machine.

    config.yaml          the complete configuration
    config.N.yaml        earlier configurations, which a resume has changed
    metrics.jsonl        one record for each optimizer step
    evaluations.jsonl    one record for each evaluation
    summary.json         the final figures
    report.html          curves and trees
    targets.json         the addresses of /metrics, in the form of Prometheus' file_sd
    replay/              the journal and payload files of the queue
    checkpoints/step-N/  a Hugging Face folder and the state of the trainer
    best/                a Hugging Face folder of the best step

With run.storage an object store holds the run (`treeadv.storage.object_run`). Any machine can then create this folder
from the store."""

from __future__ import annotations

import json
import math
import re
import shutil
import tempfile
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from treeadv import config as configuration
from treeadv.config import Config
from treeadv.disk import deleting, rename, replace_file, replacing, scratch_of, writing
from treeadv.errors import BadInput, one_line
from treeadv.jsonl import JsonObject
from treeadv.places import check_typed, is_uri
from treeadv.storage.folder import split
from treeadv.storage.lock import LocalLock
from treeadv.storage.record_fields import CHECKS, DAMAGED, check_shown, parse_record
from treeadv.storage.run_store import RECORDS, LocalRunStore, RunStore, object_store, run_store
from treeadv.visible import visible_logger

_LISTED = 8  # number of runs that an error lists
log = visible_logger(__name__)


class RunFolder:
    """A run: its folder on this machine, and its store."""

    def __init__(self, path: Path, store: RunStore | None = None) -> None:
        """Open the folder at `path`. If `store` is None, the folder itself stores the run."""
        self.path = path
        self.store: RunStore = store or LocalRunStore(path)

    @classmethod
    def of(cls, path: Path, config: Config) -> RunFolder:
        """Return the folder of the run that `config` describes. The folder is at `path`."""
        return cls(path, run_store(config, path))

    @classmethod
    def create(cls, config: Config, name: str) -> tuple[RunFolder, Config, LocalLock]:
        """Create and lock the folder of a new run. The name of the run is run.name, or `name` if run.name is empty.

        Returns the folder, the configuration with the name, and the lock of this process. No folder remains after an
        error. Raises `BadInput` if the run exists."""
        config = config.model_copy(update={"run": config.run.model_copy(update={"name": config.run.name or name})})
        path = Path(config.run.root) / config.run.name
        folder = cls.of(path, config)
        folder.store.check()
        if path.exists() and any(path.iterdir()):
            raise BadInput(f"run folder {path} exists: choose another run.name, or resume the run with --resume {path}")
        if folder.store.holds_run():
            uri = folder.store.uri
            raise BadInput(
                f"run.storage: {uri} holds a run: choose another run.name, or resume the run with --resume '{uri}'"
            )
        lock = _make_complete(path, config)
        try:
            folder.store.push()
        except BadInput:
            shutil.rmtree(path, ignore_errors=True)  # the error says what is wrong with the disk
            lock.release()
            raise
        return folder, config, lock

    @classmethod
    def open(cls, path: Path, overrides: list[str]) -> tuple[RunFolder, Config]:
        """Return an existing run and its configuration. `overrides` change the configuration of the following steps."""
        if not (path / "config.yaml").is_file():
            raise not_a_run(path)
        config = configuration.load(path / "config.yaml", overrides)
        return cls.of(path, config), config

    @property
    def uri(self) -> str:
        """Return the path or URI of the run. The queue, `treeadv audit` and --resume use it."""
        return self.store.uri

    @property
    def accepted(self) -> bool:
        """Return whether a driver's journal and trainer have accepted the run. Then `rewind` was called."""
        return (self.path / "metrics.jsonl").is_file()

    # ---- checkpoints -------------------------------------------------------------------------------------------------
    def checkpoints(self) -> list[int]:
        """Return the steps of the sealed checkpoints, oldest first."""
        return self.store.checkpoints()

    def last_checkpoint(self) -> int:
        """Return the step of the newest valid checkpoint, from which a resume starts; 0 if the run has no valid
        checkpoint."""
        return self.store.newest_valid()

    def checkpoint(self, step: int) -> Path:
        """Return the folder of a checkpoint on this machine. The folder need not exist."""
        return self.path / "checkpoints" / f"step-{step}"

    def open_checkpoint(self, step: int) -> AbstractContextManager[Path]:
        """Return a context manager that yields a local folder with the files of a checkpoint."""
        return self.store.local_copy(step)

    # ---- configuration -----------------------------------------------------------------------------------------------
    def replace_configuration(self, config: Config, step: int) -> None:
        """Make `config` the configuration of the run from `step` on.

        A different earlier configuration is kept as config.N.yaml. N counts from 1."""
        path, text = self.path / "config.yaml", config.to_yaml()
        before = path.read_text() if path.is_file() else text
        if before != text:
            number = 1
            while self._kept(f"config.{number}.yaml"):
                number += 1
            kept = self.path / f"config.{number}.yaml"
            replace_file(kept, f"# the configuration until the resume from step {step}\n{before}")
            self.store.keep(kept)
        replace_file(path, text)

    def _kept(self, name: str) -> bool:
        return (self.path / name).is_file() or bool(self.store.pull(name))

    # ---- requests to the driver --------------------------------------------------------------------------------------
    def clear_end(self) -> None:
        """Delete the summary that the last end of the run left, and all requests to the driver."""
        self.take_request()
        with deleting(self.path / "summary.json"):
            (self.path / "summary.json").unlink(missing_ok=True)

    def request(self, counts: dict[str, int]) -> None:
        """Request other numbers of actors, by role, from the driver. Raises `BadInput` if the run has ended."""
        if (self.path / "summary.json").is_file():
            raise BadInput(
                f"{self.path}: the run has ended; resume the run with treeadv train --resume {self.path} and repeat"
                " the request"
            )
        for role, count in counts.items():
            self.write(f"scale-{role}.json", count)

    def take_request(self) -> dict[str, int]:
        """Return the numbers of actors that were requested since the last call, by role.

        A file that does not hold a request is deleted, because it must not end the run. A warning names it."""
        counts = {}
        for path in filter(Path.is_file, self.path.glob("scale-*.json")):
            with deleting(path):
                taken = path.with_name(f".{path.name}")
                rename(path, taken, durable=False)  # renamed first, so a later request is a new file
                text = taken.read_bytes()
                taken.unlink()
            if re.fullmatch(rb"[1-9][0-9]{0,5}\s*", text):
                counts[path.stem.removeprefix("scale-")] = int(text)
            else:
                log.warning("%s is ignored: it held no number from 1; request actors with treeadv scale", path)
        return counts

    # ---- records -----------------------------------------------------------------------------------------------------
    def records(self, last: float = math.inf) -> list[JsonObject]:
        """Return the records that `read_records` yields as a list. All records are then in memory."""
        return list(self.read_records(last))

    def last_record(self) -> JsonObject | None:
        """Return the record of the last step; None if there is no record. Raises the errors of `read_records`."""
        newest = deque(self.read_records(), maxlen=1)
        return newest[0] if newest else None

    def read_records(self, last: float = math.inf) -> Iterator[JsonObject]:
        """Yield the records of the steps up to `last`. An incomplete last line that a killed driver left is ignored.

        Raises `BadInput` for a damaged record of these steps. Lines after the record of step `last` are not read."""
        return self._read("metrics.jsonl", last)

    def shown_records(self, last: float = math.inf) -> Iterator[JsonObject]:
        """Yield the records as `read_records` does. Raises `BadInput` for a record without a field that is shown."""
        for record in self.read_records(last):
            check_shown(record, self.path / "metrics.jsonl")
            yield record

    def evaluations(self, last: float = math.inf) -> list[JsonObject]:
        """Return the records of the evaluations of the steps up to `last`, in the order of the steps.

        Raises `BadInput` for a damaged record."""
        return list(self._read("evaluations.jsonl", last))

    def _read(self, name: str, last: float) -> Iterator[JsonObject]:
        path = self.path / name
        step = -1
        with _opened(path) as lines:
            for number, line in enumerate(lines, 1):
                if not line.endswith(b"\n") or step >= last:
                    return
                try:
                    record = parse_record(line)
                    step = record["step"]
                    if step > last:
                        return
                    CHECKS[name](record)
                except DAMAGED as e:
                    raise BadInput(
                        f"{path}: line {number} is damaged ({one_line(e)}): restore the file, or delete the file and"
                        " lose its records"
                    ) from e
                yield record

    def rewind(self, step: int) -> None:
        """Remove the records of the steps after `step`. The run takes and evaluates these steps again.

        If the store has a copy of a file, the copy first replaces the file, because another driver may have
        continued the run without this folder."""
        for name in RECORDS:
            path = self.path / name
            kept = self.store.pull(name)
            if kept is not None:
                replace_file(path, kept)
            if path.is_file() or name == "metrics.jsonl":
                with replacing(path) as scratch, scratch.open("w") as file:
                    file.writelines(json.dumps(r) + "\n" for r in self._read(name, step))

    def record(self, record: JsonObject) -> None:
        """Append the record of one step."""
        self._append("metrics.jsonl", record)

    def record_evaluation(self, record: JsonObject) -> None:
        """Append the record of one evaluation."""
        self._append("evaluations.jsonl", record)

    def _append(self, name: str, record: JsonObject) -> None:
        path = self.path / name
        with writing(path), path.open("a") as f:
            f.write(json.dumps(record) + "\n")

    def write(self, name: str, value: object) -> None:
        """Replace the JSON file `name` of the run folder atomically."""
        replace_file(self.path / name, json.dumps(value, indent=2) + "\n")


def _opened(path: Path) -> BinaryIO:
    """Open a file of records. A run without the file has no records. Raises `BadInput` if it cannot be read."""
    try:
        return path.open("rb") if path.exists() else BytesIO()
    except OSError as e:
        raise BadInput(f"{path}: cannot be read ({e.strerror})") from e


def not_a_run(path: Path) -> BadInput:
    """Return the error for a folder that is not a run. The message lists the runs inside the folder."""
    runs = sorted(path.glob("*/config.yaml"), key=lambda p: p.stat().st_mtime, reverse=True)
    if not runs:
        return BadInput(f"{path} is not a run folder (it has no config.yaml)")
    names = [str(p.parent) for p in runs[:_LISTED]] + ["..."] * (len(runs) > _LISTED)
    listed = ", ".join(names)
    return BadInput(f"{path} is not a run folder (it has no config.yaml); the runs in it, newest first: {listed}")


def named_store(run: str | Path) -> RunStore:
    """Return the store of a run, given its folder or its URI. A folder without a configuration counts as the folder
    of a run."""
    check_typed(str(run))
    if is_uri(str(run)):
        return object_store(str(run), Path())
    path = Path(run)
    return RunFolder.open(path, [])[0].store if (path / "config.yaml").is_file() else LocalRunStore(path)


def stored_config(uri: str) -> Config:
    """Return the configuration of the run at a URI. Raises `BadInput`."""
    text = object_store(uri, Path()).pull("config.yaml")
    if not text:
        raise BadInput(f"{uri} holds no run (no config.yaml); name the run as {{run.storage}}/{{run.name}}")
    parent, name = split(uri)
    place = [f"run.storage={json.dumps(parent)}", f"run.name={json.dumps(name)}"]  # the run may have been moved
    tree = configuration.mapping_of(text, f"{uri}/config.yaml", "a configuration is a mapping of sections")
    return configuration.build(tree, place, uri)


@contextmanager
def opened_run(run: str | Path) -> Iterator[Path]:
    """Yield the folder of a run for a command that only reads the run. Of a run at a URI it is a temporary folder with
    the configuration and the records of the store's last checkpoint; readers of forests read the store itself."""
    uri = str(run)
    if not is_uri(uri):
        yield Path(run)
        return
    config, store = stored_config(uri), object_store(uri, Path())
    with tempfile.TemporaryDirectory(prefix="treeadv-") as scratch:
        folder = Path(scratch) / config.run.name
        folder.mkdir()
        (folder / "config.yaml").write_text(config.to_yaml())
        for file in (*RECORDS, "summary.json"):
            if copy := store.pull(file):
                (folder / file).write_text(copy)
        yield folder


def _make_complete(path: Path, config: Config) -> LocalLock:
    """Create a run folder with its configuration and lock it. If that fails, raise `BadInput` and leave no folder."""
    try:
        with scratch_of(path) as scratch:
            scratch.mkdir(parents=True)
            (scratch / "config.yaml").write_text(config.to_yaml())
            lock = LocalLock(scratch)  # the lock stays valid after the rename
            rename(scratch, path, existing="refuse")
        return lock
    except OSError as e:
        raise BadInput(f"run folder {path} cannot be created ({e.strerror}); choose another run.root") from e
