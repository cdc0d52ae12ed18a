"""A run in an object store (run.storage), so that no disk has to outlive it.

    replay/              journal and Arrow segments, written there by the queue
    checkpoints/step-N/  the files of a checkpoint
    checkpoints/step-N.json  their sizes. An object store cannot rename a folder, so this is written last: what has none is no checkpoint
    config.yaml, metrics.jsonl, summary.json, report.html  copies of the run folder's, made before each checkpoint and at the end
"""

from __future__ import annotations

import fcntl
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from treeadv.config import Config
from treeadv.errors import BadInput
from treeadv.replay.files import Folder, join, one_line

COPIED = ("config.yaml", "metrics.jsonl", "summary.json", "report.html")
_PROBE = "writable"


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
        self._checkpoints = self._folder.child("checkpoints")

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

    # ---- checkpoints ---------------------------------------------------------------------------------------------------------
    def checkpoints(self) -> list[int]:
        """Steps of the whole ones, oldest first."""
        with self._asked("read"):
            return sorted(int(n.removeprefix("step-").removesuffix(".json")) for n in self._checkpoints.sizes(".json"))

    def drop(self, step: int) -> None:
        """Delete a checkpoint, or what there is of one."""
        with self._asked("written"):
            if f"step-{step}.json" in self._checkpoints.sizes(".json"):
                self._checkpoints.delete(f"step-{step}.json")  # first: what is half deleted must not count
            self._checkpoints.child(f"step-{step}").delete_tree()

    def upload(self, step: int, files: Path) -> None:
        """Copy files of a checkpoint; those of several ranks add up."""
        with self._asked("written"):
            self._checkpoints.child(f"step-{step}").copy_in(files)

    def seal(self, step: int, keep: int) -> None:
        """All files of a checkpoint are there: from now on it counts, and only the newest `keep` stay."""
        with self._asked("written"):
            files = self._checkpoints.child(f"step-{step}").tree()
            self._checkpoints.write_whole(f"step-{step}.json", json.dumps({"written": time.time(), "files": files}).encode())
            kept = self.checkpoints()[-keep:]
            for other in {int(path.partition("/")[0].removeprefix("step-")) for path in self._checkpoints.tree() if "/" in path}:
                if other not in kept:
                    self.drop(other)

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
            seal = self._checkpoints.read(f"step-{step}.json").to_pybytes()
            there = folder.with_suffix(".json")  # written last, as in the store
            if there.is_file() and there.read_bytes() == seal:
                return
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            self._checkpoints.child(f"step-{step}").copy_out(folder)
            for name, size in json.loads(seal)["files"].items():
                path = folder / name
                if not path.is_file() or path.stat().st_size != size:
                    raise BadInput(
                        f"{self.uri}: checkpoints/step-{step}/{name} is not there or not of its {size} bytes; delete"
                        f" checkpoints/step-{step}.json to go on from the checkpoint before"
                    )
            there.write_bytes(seal)

    @contextmanager
    def _asked(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as e:
            remedy = "check the address and the credentials in the environment"
            raise BadInput(f"run.storage: {self.uri} cannot be {what} ({one_line(e)}); {remedy}") from e
