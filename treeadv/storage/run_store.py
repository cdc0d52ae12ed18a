"""A run in an object store (run.storage), so that no disk has to outlive it.

    replay/              journal and Arrow segments, written there by the queue
    checkpoints/step-N-SESSION/      the files of a checkpoint, SESSION names the start of the run that wrote it
    checkpoints/step-N-SESSION.json  their sizes. An object store cannot rename a folder, so this is written last: what has none is no
                                     checkpoint
    config.yaml, metrics.jsonl, summary.json, report.html  copies of the run folder's, made before each checkpoint and at the end
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from treeadv.config import Config
from treeadv.errors import BadInput
from treeadv.storage.folder import Folder, join, one_line
from treeadv.storage.lock import hold, next_session, owner

COPIED = ("config.yaml", "metrics.jsonl", "summary.json", "report.html")
_PROBE = "writable"


@dataclass(frozen=True, slots=True, order=True)
class _Checkpoint:
    """A folder of the store by its name; an older release wrote no session."""

    step: int
    session: str
    name: str

    @classmethod
    def of(cls, name: str) -> _Checkpoint:
        step, _, session = name.removeprefix("step-").partition("-")
        return cls(int(step), session, name)


class Storage:
    """One run's place. A store that does not do as asked is `BadInput`: one line with the URI and what it said."""

    def __init__(self, uri: str) -> None:
        """`uri`: of the run, {run.storage}/{run.name}."""
        if "://" not in uri or urlsplit(uri).password:
            raise BadInput(
                f"run.storage={urlsplit(uri)._replace(netloc='...').geturl()}: write a URI without credentials, as s3://bucket/runs; they"
                " come from the environment (AWS_ACCESS_KEY_ID, ...)"
            )
        self.uri = uri
        with self._asked("reached"):
            self._folder = Folder(uri)
        self._checkpoints, self._replay = self._folder.child("checkpoints"), self._folder.child("replay")

    @classmethod
    def of(cls, config: Config) -> Storage:
        return cls(join(config.run.storage, config.run.name))

    def check(self) -> None:
        """Find out that files can be made and deleted here."""
        with self._asked("written"):
            if self._folder.local:
                self._folder.make()  # an object store has no folders to make
            self._folder.write_whole(_PROBE, b"")
            self._folder.delete(_PROBE)

    # ---- records -------------------------------------------------------------------------------------------------------------
    def holds_run(self) -> bool:
        with self._asked("read"):
            return "config.yaml" in self._folder.sizes("config.yaml")

    def read(self, name: str) -> str:
        """Text of a copied file; "" where there is none."""
        with self._asked("read"):
            try:
                return self._folder.read(name).to_pybytes().decode()
            except FileNotFoundError:
                return ""

    def push(self, run: Path) -> None:
        """Copy what a run folder has to say of the run."""
        with self._asked("written"):
            for path in (run / name for name in COPIED):
                if path.is_file():
                    self._folder.write_whole(path.name, path.read_bytes())

    def keep(self, path: Path) -> None:
        """Copy one more file."""
        with self._asked("written"):
            self._folder.write_whole(path.name, path.read_bytes())

    def next_session(self) -> str:
        """See `ownership.next_session`."""
        with self._asked("read"):
            return next_session(self._replay, (c.session for c in self._sealed()))

    # ---- checkpoints ---------------------------------------------------------------------------------------------------------
    def checkpoints(self) -> list[int]:
        """Steps of the whole ones, oldest first."""
        return sorted(self._whole())

    def _whole(self) -> dict[int, str]:
        """The names of the whole ones by step. One that a writer sealed when another had opened the run does not count: it is of no step
        that the other has begun from or done."""
        with self._asked("read"):
            session, begun = owner(self._replay)
            return {c.step: c.name for c in self._sealed() if c.session == session or c.step <= begun}

    def _sealed(self) -> list[_Checkpoint]:
        """In order; of a step the one of the latest session last."""
        return sorted(_Checkpoint.of(name.removesuffix(".json")) for name in self._checkpoints.sizes(".json"))

    def upload(self, step: int, session: str, files: Path) -> None:
        """Copy files of a checkpoint; those of several ranks add up."""
        with self._asked("written"):
            self._checkpoints.child(f"step-{step}-{session}").copy_in(files)

    def seal(self, step: int, session: str, keep: int) -> None:
        """All files of a checkpoint are there: from now on it counts, and only the newest `keep` stay. `BadInput` if another session has
        opened the run."""
        name = f"step-{step}-{session}"
        with self._asked("written"):
            seal = {"written": time.time(), "files": self._checkpoints.child(name).tree()}
            hold(self._replay, session)
            self._checkpoints.write_whole(f"{name}.json", json.dumps(seal).encode())
            whole = self._whole()
            kept = {whole[step] for step in sorted(whole)[-keep:]}
            found = {path.partition("/")[0].removesuffix(".json") for path in self._checkpoints.tree()}
            for other in map(_Checkpoint.of, sorted(found - kept)):
                if other.session <= session:
                    self._drop(other.name, session)

    def _drop(self, name: str, session: str) -> None:
        """Delete a checkpoint, or what there is of one."""
        hold(self._replay, session)
        with contextlib.suppress(FileNotFoundError):
            self._checkpoints.delete(f"{name}.json")  # first: what is half deleted must not count
        self._checkpoints.child(name).delete_tree()

    @contextmanager
    def fetched(self, step: int, folder: Path) -> Iterator[None]:
        """A checkpoint in a local folder, which is deleted again; on one machine many ranks may ask for it."""
        self._fetch(step, folder)
        yield
        folder.with_suffix(".json").unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)  # the other ranks here do the same

    def _fetch(self, step: int, folder: Path) -> None:
        """Bring it, unless another rank has."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        with (folder.parent / "lock").open("w") as lock, self._asked("read"):
            fcntl.flock(lock, fcntl.LOCK_EX)
            name = self._whole()[step]
            seal = self._checkpoints.read(f"{name}.json").to_pybytes()
            there = folder.with_suffix(".json")  # written last, as in the store
            if there.is_file() and there.read_bytes() == seal:
                return
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            self._checkpoints.child(name).copy_out(folder)
            for file, size in json.loads(seal)["files"].items():
                path = folder / file
                if not path.is_file() or path.stat().st_size != size:
                    raise BadInput(
                        f"{self.uri}: checkpoints/{name}/{file} is not there or not of its {size} bytes; delete"
                        f" checkpoints/{name}.json to go on from the checkpoint before"
                    )
            there.write_bytes(seal)

    @contextmanager
    def _asked(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as e:
            remedy = "check the address and the credentials in the environment"
            raise BadInput(f"run.storage: {self.uri} cannot be {what} ({one_line(e)}); {remedy}") from e
