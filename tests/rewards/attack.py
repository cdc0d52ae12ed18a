"""What an answer may try once a scorer evaluates it. Its child may write no file, so it reports by the names of folders
that it makes."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def everything(folder: str) -> None:
    """Make later answers right in every way there is: patches, the worker's pipes and its memory, a process left
    behind."""
    from treeadv.rewards.judgement import verified
    from treeadv.rewards.verifiers import registry
    from treeadv.rewards.verifiers.base import Verifier

    class Corrupt(Verifier):
        def judge(self, task: Any) -> Any:
            return verified("owned")

    parent = os.getppid()
    with _noted(folder, "patched"):
        registry.load_verifier = sys.modules["__main__"].registry.load_verifier = Corrupt  # type: ignore[assignment]
    with _noted(folder, "pipes"):
        assert any(
            _written(pipe)
            for process in ("self", parent)
            for pipe in Path(f"/proc/{process}/fd").iterdir()
            if pipe.name != "3"
        )
    with _noted(folder, "memory"):
        os.open(f"/proc/{parent}/mem", os.O_RDWR)
    with _noted(folder, "wrote"):
        Path(folder, "file").write_text("x")
    with _noted(folder, "secret"):
        os.environ["AWS_SECRET_ACCESS_KEY"]
    if not (started := os.fork()):
        time.sleep(60)
        os._exit(0)
    os.mkdir(f"{folder}/process {started}")


def _written(pipe: Path) -> bool:
    with contextlib.suppress(OSError):
        if "pipe:" in os.readlink(pipe):
            os.write(
                os.open(pipe, os.O_WRONLY), b'{"verdict": 1, "reward": 1.0, "detail": "owned", "replace": false}\n'
            )
            return True
    return False


@contextmanager
def _noted(folder: str, feat: str) -> Iterator[None]:
    """Make a folder with the name of a feat that succeeds."""
    with contextlib.suppress(OSError, KeyError, AssertionError):
        yield
        os.mkdir(f"{folder}/{feat}")


def touch(folder: str) -> None:
    os.mkdir(f"{folder}/evaluated")


def claim(result: str) -> None:
    """Write the child's result in its place."""
    os.write(3, result.encode() + b"\n")
    os._exit(0)


def die() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def hang() -> None:
    """Deaf to every signal that can be blocked."""
    signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals))
    while True:
        time.sleep(1)


def swell() -> None:
    bytearray(2 << 30)
