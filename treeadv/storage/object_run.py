"""A run in an object store (run.storage), so that no disk has to outlive it.

    replay/                          journal and payload files, written by the queue
    checkpoints/step-N-SESSION/      the files of a checkpoint; SESSION names the start of the run that wrote it
    checkpoints/step-N-SESSION.json  their sizes and checksums, written last
    config.yaml, metrics.jsonl, summary.json, report.html  copies of the files of the run folder

An object store cannot rename a folder, so files without their JSON file are no checkpoint. The copies are made before
each checkpoint and at the end of the run.
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from treeadv.errors import BadInput, one_line
from treeadv.storage import manifest
from treeadv.storage.folder import open_folder
from treeadv.storage.sessions import next_session
from treeadv.visible import visible_logger

COPIED = ("config.yaml", "metrics.jsonl", "summary.json", "report.html")
_PROBE = "writable"
_RANK_FILES = "files-"  # begins the name of the manifest of one rank
log = visible_logger("treeadv.storage")


@dataclass(frozen=True, slots=True, order=True)
class _Checkpoint:
    """A checkpoint by the name of its folder in the store."""

    step: int
    session: str
    name: str

    @classmethod
    def parse(cls, name: str) -> _Checkpoint | None:
        """Return None for a name that is no checkpoint's."""
        match = re.fullmatch(r"step-(\d+)-(.+?)(\.json)?", name)
        return cls(int(match[1]), match[2], name.removesuffix(".json")) if match else None


class ObjectRunStore:
    """Keeps one run at a URI. A store that refuses raises `BadInput`: one line with the URI and what the store said."""

    def __init__(self, uri: str, path: Path) -> None:
        """`uri` is {run.storage}/{run.name}, `path` the run folder on this machine."""
        if "://" not in uri or urlsplit(uri).password:
            raise BadInput(
                f"run.storage={urlsplit(uri)._replace(netloc='...').geturl()}: write a URI without credentials, as"
                " s3://bucket/runs; they come from the environment (AWS_ACCESS_KEY_ID, ...)"
            )
        self.home = uri
        self._path = path
        self._damaged: set[str] = set()  # names
        with self._reporting("reached"):
            self._folder = open_folder(uri)
        self.keeps_unflushed = self._folder.keeps_unflushed
        self._checkpoints, self._replay = self._folder.child("checkpoints"), self._folder.child("replay")

    def check(self) -> None:
        with self._reporting("written"):
            self._folder.make()
            self._folder.write_whole(_PROBE, b"")
            self._folder.delete(_PROBE)

    # ---- records -----------------------------------------------------------------------------------------------------
    def holds_run(self) -> bool:
        with self._reporting("read"):
            return "config.yaml" in self._folder.sizes("config.yaml")

    def pull(self, name: str) -> str | None:
        """Return the text of a copied file; "" where the store has none."""
        with self._reporting("read"):
            try:
                return self._folder.read(name).to_pybytes().decode()
            except FileNotFoundError:
                return ""

    def push(self) -> None:
        for name in COPIED:
            if (self._path / name).is_file():
                self.keep(self._path / name)

    def keep(self, path: Path) -> None:
        with self._reporting("written"):
            self._folder.write_whole(path.name, path.read_bytes())

    def next_session(self) -> str:
        with self._reporting("read"):
            return next_session(self._replay, (c.session for c in self._sealed()))

    # ---- checkpoints -------------------------------------------------------------------------------------------------
    def checkpoints(self) -> list[int]:
        return sorted(self._whole())

    def _whole(self) -> dict[int, str]:
        """Return the names of the whole checkpoints by step.

        A checkpoint that an earlier session sealed counts only up to the step that the current owner resumed from.
        """
        with self._reporting("read"):
            owner = self._replay.owner()
            return {c.step: c.name for c in self._sealed() if c.session == owner.session or c.step <= owner.step}

    def _sealed(self) -> list[_Checkpoint]:
        """Return the sealed checkpoints in order; of one step the latest session comes last."""
        return sorted(c for c in map(_Checkpoint.parse, self._checkpoints.sizes(".json")) if c)

    def newest_whole(self) -> int:
        """As `RunStore.newest_whole`, by sizes. Checksums are verified when a checkpoint is fetched."""
        for step, name in sorted(self._whole().items(), reverse=True):
            with self._reporting("read"):
                seal = self._checkpoints.read(f"{name}.json").to_pybytes()
                try:
                    fault = manifest.size_fault(self._checkpoints.child(name).tree(), json.loads(seal)["files"])
                except (ValueError, TypeError, KeyError, AttributeError) as e:  # it is no manifest
                    fault = f"its seal cannot be read ({one_line(e)})"
            if not fault:
                return step
            self._damaged.add(name)
            log.warning("checkpoint %s checkpoints/%s is passed over: %s", self.home, name, fault)
        return 0

    def write_checkpoint(self, step: int, session: str, write: Callable[[Path], None]) -> None:
        """Upload the files of one rank. Ranks need no disk in common."""
        self._path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".upload-", dir=self._path) as scratch:
            write(Path(scratch))
            files = json.dumps(manifest.describe(Path(scratch)))
            (Path(scratch) / f"{_RANK_FILES}{uuid.uuid4().hex}.json").write_text(files)
            with self._reporting("written"):
                self._checkpoints.child(f"step-{step}-{session}").copy_in(Path(scratch))

    def seal(self, step: int, session: str, keep: int) -> None:
        """As `RunStore.seal`. Raises `BadInput` if another session has opened the run."""
        name = f"step-{step}-{session}"
        with self._reporting("written"):
            folder = self._checkpoints.child(name)
            files: manifest.Manifest = {}
            for rank_files in (path for path in folder.tree() if path.startswith(_RANK_FILES)):
                files |= json.loads(folder.read(rank_files).to_pybytes())
            if fault := manifest.size_fault(folder.tree(), files):
                raise BadInput(f"{self.home}: checkpoints/{name}: the upload is not complete, {fault}")
            self._replay.check_owner(session)
            self._checkpoints.write_whole(f"{name}.json", json.dumps({"written": time.time(), "files": files}).encode())
            whole = {s: n for s, n in self._whole().items() if s <= step and n not in self._damaged}
            kept = {whole[s] for s in sorted(whole)[-keep:]}
            found = {path.partition("/")[0].removesuffix(".json") for path in self._checkpoints.tree()}
            for other in map(_Checkpoint.parse, sorted(found - kept)):
                if other and other.session <= session:
                    self._delete(other.name, session)

    def _delete(self, name: str, session: str) -> None:
        """Delete a checkpoint, or the files of an unfinished one."""
        self._replay.check_owner(session)
        with contextlib.suppress(FileNotFoundError):
            self._checkpoints.delete(f"{name}.json")  # first: a checkpoint that is half deleted must not count
        self._checkpoints.child(name).delete_tree()

    @contextmanager
    def fetched(self, step: int) -> Iterator[Path]:
        """As `RunStore.fetched`. The local copy is deleted at the end."""
        folder = self._path / "checkpoints" / f"step-{step}"
        self._fetch(step, folder)
        yield folder
        folder.with_suffix(".json").unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)  # other ranks of this machine delete it too

    def _fetch(self, step: int, folder: Path) -> None:
        """Download a checkpoint, unless another rank of this machine has."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        with (folder.parent / "lock").open("w") as lock, self._reporting("read"):
            fcntl.flock(lock, fcntl.LOCK_EX)
            name = self._whole()[step]
            seal = self._checkpoints.read(f"{name}.json").to_pybytes()
            copy = folder.with_suffix(".json")  # written last, as in the store
            if copy.is_file() and copy.read_bytes() == seal:
                return
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            self._checkpoints.child(name).copy_out(folder)
            if fault := manifest.fault(folder, json.loads(seal)["files"]):
                raise BadInput(
                    f"{self.home}: checkpoints/{name}/{fault}; delete "
                    f"checkpoints/{name}.json to resume from the checkpoint"
                    " before"
                )
            copy.write_bytes(seal)

    @contextmanager
    def _reporting(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as e:
            remedy = "check the address and the credentials in the environment"
            raise BadInput(f"run.storage: {self.home} cannot be {what} ({one_line(e)}); {remedy}") from e
