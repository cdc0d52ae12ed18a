"""The store of a run in an object store. With this store (run.storage) a run needs no persistent disk.

    replay/                          the journal and payload files, which the queue writes
    checkpoints/step-N-SESSION/      the files of a checkpoint; SESSION names the start of the run that wrote it
    checkpoints/step-N-SESSION.json  the seal: sizes and checksums of these files, written last
    best/                            the weights of the best evaluated step, and its evaluation, written last
    config.yaml, metrics.jsonl, evaluations.jsonl, summary.json, report.html  copies of the files of the run folder

An object store cannot rename a folder, so files without a seal do not count as a checkpoint. The driver copies the
files of the run folder before each checkpoint and at the end of the run.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from treeadv.errors import BadInput, one_line
from treeadv.jsonl import JsonMapping, parse_object
from treeadv.storage import manifest
from treeadv.storage.folder import check_uri, open_folder
from treeadv.storage.run_store import BEST, EVALUATION, RECORDS, step_in
from treeadv.storage.sessions import next_session
from treeadv.visible import visible_logger

COPIED = ("config.yaml", *RECORDS, "summary.json", "report.html")
_PROBE = "writable"
_RANK_FILES = "files-"  # prefix of the file name of one rank's manifest
log = visible_logger("treeadv.storage")


@dataclass(frozen=True, slots=True, order=True)
class _Checkpoint:
    """The parsed name of a checkpoint's folder in the store."""

    step: int
    session: str
    name: str

    @classmethod
    def parse(cls, name: str) -> _Checkpoint | None:
        """Parse the name of a checkpoint's folder or seal. Returns None for any other name."""
        match = re.fullmatch(r"step-(\d+)-(.+?)(\.json)?", name)
        return cls(int(match[1]), match[2], name.removesuffix(".json")) if match else None


class ObjectRunStore:
    """The store of one run at a URI. An error of the store becomes a `BadInput` with the URI and the store's
    message."""

    def __init__(self, uri: str, path: Path) -> None:
        """Connect to the store. `uri` is {run.storage}/{run.name}, and `path` is the run folder on this machine."""
        check_uri(uri)
        self.uri = uri
        self._path = path
        self._damaged: set[str] = set()  # names of damaged checkpoints
        with self._store_errors("reached"):
            self._folder = open_folder(uri)
        self.keeps_unflushed = self._folder.keeps_unflushed
        self._checkpoints, self._replay = self._folder.child("checkpoints"), self._folder.child("replay")

    def check(self) -> None:
        with self._store_errors("written"):
            self._folder.make()
            self._folder.write_whole(_PROBE, b"")
            self._folder.delete(_PROBE)

    # ---- records -----------------------------------------------------------------------------------------------------
    def holds_run(self) -> bool:
        with self._store_errors("read"):
            return "config.yaml" in self._folder.sizes("config.yaml")

    def pull(self, name: str) -> str | None:
        """Return the text of the store's copy of a file; "" if the store has no copy."""
        with self._store_errors("read"):
            try:
                return self._folder.read(name).to_pybytes().decode()
            except FileNotFoundError:
                return ""
            except UnicodeDecodeError as e:
                raise BadInput(f"{self.uri}/{name}: is not UTF-8 text (byte {e.start}); restore the file") from e

    def push(self) -> None:
        for name in COPIED:
            if (self._path / name).is_file():
                self.keep(self._path / name)

    def keep(self, path: Path) -> None:
        with self._store_errors("written"):
            self._folder.write_whole(path.name, path.read_bytes())

    def next_session(self) -> str:
        with self._store_errors("read"):
            return next_session(self._replay, (c.session for c in self._sealed()))

    # ---- checkpoints -------------------------------------------------------------------------------------------------
    def checkpoints(self) -> list[int]:
        return sorted(self._sealed_by_step())

    def _sealed_by_step(self) -> dict[int, str]:
        """Return the name of each sealed checkpoint of this run, by step.

        A checkpoint of an earlier session counts only up to the step from which the current owner resumed."""
        with self._store_errors("read"):
            owner = self._replay.owner()
            return {c.step: c.name for c in self._sealed() if c.session == owner.session or c.step <= owner.step}

    def _sealed(self) -> list[_Checkpoint]:
        """Return the sealed checkpoints, sorted by step and session."""
        return sorted(c for c in map(_Checkpoint.parse, self._checkpoints.sizes(".json")) if c)

    def newest_valid(self) -> int:
        """Implement `RunStore.newest_valid`. This method checks only sizes; `local_copy` checks the checksums."""
        for step, name in sorted(self._sealed_by_step().items(), reverse=True):
            with self._store_errors("read"):
                seal = self._checkpoints.read(f"{name}.json").to_pybytes()
                try:
                    fault = manifest.size_fault(self._checkpoints.child(name).tree(), _files(seal))
                except ValueError as e:
                    fault = f"the seal is damaged ({one_line(e)})"
            if not fault:
                return step
            if name not in self._damaged:
                log.warning("checkpoint %s checkpoints/%s is ignored: %s", self.uri, name, fault)
            self._damaged.add(name)
        return 0

    def write_checkpoint(self, step: int, session: str, write: Callable[[Path], None]) -> None:
        """Upload the files of one rank. The ranks do not need a shared disk."""
        self._path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".upload-", dir=self._path) as scratch:
            write(Path(scratch))
            files = json.dumps(manifest.describe(Path(scratch)))
            (Path(scratch) / f"{_RANK_FILES}{uuid.uuid4().hex}.json").write_text(files)
            with self._store_errors("written"):
                self._checkpoints.child(f"step-{step}-{session}").copy_in(Path(scratch))

    def seal(self, step: int, session: str, keep: int, protected: Collection[int] = ()) -> None:
        """Implement `RunStore.seal`. Raises `BadInput` if another session has opened the run."""
        name = f"step-{step}-{session}"
        with self._store_errors("written"):
            folder = self._checkpoints.child(name)
            files: manifest.Manifest = {}
            for rank_files in (path for path in folder.tree() if path.startswith(_RANK_FILES)):
                files |= json.loads(folder.read(rank_files).to_pybytes())
            if fault := manifest.size_fault(folder.tree(), files):
                raise BadInput(f"{self.uri}: checkpoints/{name}: the upload is incomplete: {fault}")
            self._replay.check_owner(session)
            self._checkpoints.write_whole(f"{name}.json", json.dumps({"written": time.time(), "files": files}).encode())
            whole = {s: n for s, n in self._sealed_by_step().items() if s <= step and n not in self._damaged}
            kept = {whole[s] for s in {*sorted(whole)[-keep:], *protected} & set(whole)}
            found = {path.partition("/")[0].removesuffix(".json") for path in self._checkpoints.tree()}
            for other in map(_Checkpoint.parse, sorted(found - kept)):
                if other and other.session <= session:
                    self._delete(other.name, session)

    def keep_best(self, step: int, record: JsonMapping) -> None:
        with self._store_errors("written"):
            source = f"checkpoints/{self._sealed_by_step()[step]}"
            files = [name for name in self._folder.child(source).tree() if "/" not in name]
            self._folder.child(BEST).delete_tree()
            for name in files:
                if not name.startswith(_RANK_FILES):
                    self._folder.copy_file(f"{source}/{name}", f"{BEST}/{name}")
            self._folder.child(BEST).write_whole(EVALUATION, json.dumps(record, indent=2).encode())

    def best_step(self) -> int | None:
        text = self.pull(f"{BEST}/{EVALUATION}")
        return step_in(text.encode()) if text else None

    def _delete(self, name: str, session: str) -> None:
        """Delete a checkpoint, or the files of a checkpoint that is not finished."""
        self._replay.check_owner(session)
        with contextlib.suppress(FileNotFoundError):
            self._checkpoints.delete(f"{name}.json")  # a checkpoint without a seal does not count
        self._checkpoints.child(name).delete_tree()

    @contextmanager
    def local_copy(self, step: int) -> Iterator[Path]:
        """Implement `RunStore.local_copy`. The local copy is deleted when the context ends."""
        folder = self._path / "checkpoints" / f"step-{step}"
        self._fetch(step, folder)
        yield folder
        folder.with_suffix(".json").unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)  # other ranks of this machine delete the copy too

    def _fetch(self, step: int, folder: Path) -> None:
        """Download a checkpoint, unless another rank of this machine has already downloaded it."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        with (folder.parent / "lock").open("w") as lock, self._store_errors("read"):
            fcntl.flock(lock, fcntl.LOCK_EX)
            name = self._sealed_by_step()[step]
            seal = self._checkpoints.read(f"{name}.json").to_pybytes()
            copy = folder.with_suffix(".json")  # written last, as in the store
            if copy.is_file() and copy.read_bytes() == seal:
                return
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            self._checkpoints.child(name).copy_out(folder)
            if fault := manifest.fault(folder, _files(seal)):
                raise BadInput(
                    f"{self.uri}: checkpoints/{name}/{fault}; delete checkpoints/{name}.json to resume from the"
                    " previous checkpoint"
                )
            copy.write_bytes(seal)

    @contextmanager
    def _store_errors(self, what: str) -> Iterator[None]:
        """Turn errors into a `BadInput` of one line that the folder leaves to its caller: a missing file, or the read
        of a folder on a disk."""
        try:
            yield
        except OSError as e:
            remedy = "check the address and the credentials in the environment"
            raise BadInput(f"run.storage: {self.uri} cannot be {what} ({one_line(e)}); {remedy}") from e


def _files(seal: bytes) -> manifest.Manifest:
    """Return the manifest in a seal. Raises ValueError, which says what is damaged."""
    return manifest.checked(parse_object(seal).get("files"))
