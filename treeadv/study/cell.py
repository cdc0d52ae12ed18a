"""Runs one cell of a study in its own process. Trains, evaluates on the held-out problems, and writes cell.json.

A killed cell continues from its last checkpoint and keeps its evaluations. A *look* is one evaluation on the
development problems.
"""

from __future__ import annotations

import asyncio
import json
import logging
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from hashlib import blake2b
from pathlib import Path

from rich.console import Console

from treeadv.checks import check_run
from treeadv.config import Config
from treeadv.data.model_folder import resolve
from treeadv.data.problems import Problem
from treeadv.data.tasks import problem_source
from treeadv.disk import replace_file
from treeadv.errors import BadInput, one_line, single_errors
from treeadv.evaluation.scores import result_of, score
from treeadv.evaluation.sets import independent, read_sets
from treeadv.jsonl import JsonObject
from treeadv.launch import launch
from treeadv.local.rollouts import rollouts
from treeadv.local.training import train
from treeadv.report.progress import Progress
from treeadv.storage.run_folder import RunFolder
from treeadv.study.forests import describe_forests
from treeadv.study.results import LOOKS, RESULT, read_look, read_looks
from treeadv.study.spec import Cell, HeldOut, Study, cell_config, load_study

_SERIES = ("reward_mean", "tokens_generated", "tokens_trained", "sharing", "zero_variance", "entropy_mean",
           "grad_norm", "clip_ratio", "elapsed_s", "leaves", "nonfinite_updates")  # fmt: skip


class Interrupted(Exception):
    """The error of a cell that was interrupted. The cell can continue from its last checkpoint."""


def run_cell(study: Study, cell: Cell, folder: Path, model: Path | None) -> JsonObject:
    """Run one cell in `folder`, or continue it. Returns the content of cell.json. Raises the error that ends a run."""
    folder.mkdir(parents=True, exist_ok=True)
    looks = read_looks(folder)
    started = time.time()
    _look_at_start(study, cell_config(study, cell, folder, model, _steps(study, 0)), looks, folder)
    while (steps := _next_steps(study, folder)) is not None:
        _train(cell_config(study, cell, folder, model, steps), folder)
    run, config = RunFolder.open(folder / "run", [])
    records = run.records()
    last = records[-1]["step"]
    for record in records:
        if (step := record["step"]) % study.look_every == 0 or step == last:
            _look(study, config, run.checkpoint(step), step, record["tokens_generated"], looks, folder)
    # The test problems are used only once, after the last step.
    tested = evaluate(config, run.checkpoint(last), held_out(study.test, config), study.test.samples, "test")
    result = {
        "row": cell.row, "seed": cell.seed, "status": "done", "date": _now(),
        "steps": last, "test": tested, "looks": [looks[k] for k in sorted(looks, key=int)],
        "series": {k: [r.get(k) for r in records] for k in _SERIES},
        "seconds": records[-1]["elapsed_s"], "session_seconds": time.time() - started,
        "forests": [describe_forests(folder / "run", s) for s in study.forests_kept if s <= last],
        "config": config.model_dump(mode="json"),
    }  # fmt: skip
    replace_file(folder / RESULT, json.dumps(result) + "\n")
    shutil.rmtree(folder / "run" / "checkpoints")
    return result


def _steps(study: Study, done: int) -> int:
    """Return the step up to which the run trains before the budget is checked again."""
    return study.budget.steps or done + study.look_every


def _next_steps(study: Study, folder: Path) -> int | None:
    """Return the step up to which the run trains next, or None if its budget is spent."""
    run = folder / "run"
    if not (run / "config.yaml").is_file():
        return _steps(study, 0)
    opened = RunFolder.open(run, [])[0]
    done = opened.last_checkpoint()
    if study.budget.steps is not None:
        return study.budget.steps if done < study.budget.steps else None
    records = opened.records(done)
    spent = records[-1]["tokens_generated"] if records else 0
    assert study.budget.tokens is not None
    return _steps(study, done) if spent < study.budget.tokens else None


def _train(config: Config, folder: Path) -> None:
    """Train up to `run.steps`, from the last checkpoint if there is one."""
    recipe = folder / "recipe.yaml"
    replace_file(recipe, config.to_yaml())
    run = launch(recipe, None, True, [], check=lambda config: check_run(config, local=True))
    try:
        with Progress(config.run.steps, Console(width=200)) as progress:
            summary = train(run, progress)
    finally:
        run.lock.release()
    if summary["stopped_by"]:
        raise Interrupted(summary["stopped_by"])


def _look(study: Study, config: Config, model: Path, step: int, tokens: float, looks: JsonObject, folder: Path) -> None:
    """Evaluate on the development problems after `step`, if `looks` has no evaluation of this step."""
    if str(step) in looks:
        return
    found = evaluate(config, model, held_out(study.development, config), study.development.samples, "development")
    looks[str(step)] = {"step": step, "tokens_generated": tokens, **found}
    replace_file(folder / LOOKS, json.dumps(looks))


def _look_at_start(study: Study, config: Config, looks: JsonObject, folder: Path) -> None:
    """Evaluate before the first step. Cells with equal model, task and sampling share this evaluation in a file."""
    alone = independent(config, 1)
    drawn = alone.model_dump_json(include={"model": True, "task": True, "sampling": True})
    shared = folder.parent / f"start-{blake2b(drawn.encode(), digest_size=6).hexdigest()}.json"
    if "0" not in looks and shared.is_file():
        looks["0"] = read_look(shared)
    _look(study, config, resolve(config.model.path, config.model.cache), 0, 0.0, looks, folder)
    replace_file(shared, json.dumps(looks["0"]))


def evaluate(config: Config, model: Path, problems: list[Problem], samples: int, name: str) -> JsonObject:
    """Return the figures of a model folder on held-out problems. The draws do not depend on the seed of the run."""
    fixed = config.model_copy(update={"run": config.run.model_copy(update={"seed": 0})})
    began = time.time()
    forests = asyncio.run(rollouts(independent(fixed, samples), model, problems, lambda _: None))
    found = score({name: [result_of(f) for f in forests]}, samples).sets[name]
    print(f"{name} problems: accuracy {found.avg.value:.4f}, {found.tokens_mean:.1f} tokens an answer", flush=True)
    return {
        "accuracy": found.avg.value, "interval": found.avg.interval, "problems": found.problems,
        "samples": found.samples, "tokens_mean": found.tokens_mean, "cut": found.cut,
        "seconds": time.time() - began,
    }  # fmt: skip


def held_out(spec: HeldOut, config: Config) -> list[Problem]:
    """Return the problems of an evaluation in their fixed order."""
    if spec.source is not None:
        return [p for s in read_sets(Path(spec.source), config.task, limit=spec.problems) for p in s.problems]
    source = problem_source(config.task, spec.seed)
    return [source[draw] for draw in range(spec.problems)]


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def cell_process(home: Path, name: str, model: Path | None) -> None:
    """Run the cell in the folder `name` in this process. The process ends if the process of the study ends.

    The output goes to `log` in the folder. A failed cell writes cell.json with the status `failed` and the reason. An
    interrupted cell writes no cell.json. The exit code is 0, 1 (failed) or 130 (interrupted).
    """
    os.setpgrp()  # a Ctrl-C at the terminal then reaches only the study, which interrupts the cells
    folder = home / "cells" / name
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log").open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    logging.basicConfig(level=logging.WARNING)
    threading.Thread(target=_end_with_study, daemon=True).start()
    study = load_study(home / "study.yaml")
    cell = next(c for c in study.cells if c.folder == name)
    try:
        run_cell(study, cell, folder, model)
    except (Interrupted, KeyboardInterrupt):
        sys.exit(130)
    except Exception as error:  # the report shows the cause, and the other cells continue
        cause = next(single_errors(error))
        reason = str(cause) if isinstance(cause, BadInput) else f"{type(cause).__name__}: {one_line(cause)}"
        failed = {"row": cell.row, "seed": cell.seed, "status": "failed", "reason": reason, "date": _now()}
        replace_file(folder / RESULT, json.dumps(failed) + "\n")
        logging.exception("the cell failed")
        sys.exit(1)


def _end_with_study() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
