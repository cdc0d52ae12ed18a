"""Attacks that an answer may attempt when a scorer evaluates it. The process of the answer may write no file, so it
reports successes as names of folders that it creates."""

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
    """Try to make later answers right by every known method: patches, pipes and memory of the worker, a remaining
    process."""
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
    """Create a folder with the name of an attack that succeeds."""
    with contextlib.suppress(OSError, KeyError, AssertionError):
        yield
        os.mkdir(f"{folder}/{feat}")


def touch(folder: str) -> None:
    os.mkdir(f"{folder}/evaluated")


def claim(result: str) -> None:
    """Write a false result in place of the child's result."""
    os.write(3, result.encode() + b"\n")
    os._exit(0)


def die() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def hang() -> None:
    """Hang with every signal blocked that can be blocked."""
    signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals))
    while True:
        time.sleep(1)


def swell() -> None:
    bytearray(2 << 30)
