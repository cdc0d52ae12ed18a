"""Beginning a run: a new one of a recipe, or one to go on with. All that the user wrote is checked here."""

from __future__ import annotations

import json
import logging
import shlex
import shutil
import socket
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path

import yaml

from treeadv import config as configuration
from treeadv.config import Config
from treeadv.data.model_folder import check_path
from treeadv.data.tasks import Problem, first_problems, problem_source
from treeadv.engines.registry import check_engine
from treeadv.errors import BadForest, BadInput, RunFailed, one_line
from treeadv.learning import objective
from treeadv.rewards.golds import Gold, check_golds
from treeadv.rewards.verifiers.registry import find_verifier
from treeadv.sampling.rules import build_rule
from treeadv.storage.disk import replace_file
from treeadv.storage.folder import split
from treeadv.storage.run_folder import RunFolder, named_store
from treeadv.storage.run_store import object_store

log = logging.getLogger(__name__)
FULL_DISK = 1 << 20  # a disk with fewer free bytes counts as full


def begin(
    recipe: Path | None, resume: str | None, resume_or_start: bool, overrides: list[str], local: bool = False
) -> tuple[RunFolder, Config, bool]:
    """The folder and configuration of a new run of `recipe`, or of one to go on with, and whether it is gone on with.

    `resume` is a run folder or, with run.storage, the run's URI; `overrides` hold from now on. `resume_or_start` goes
    on with the run of the recipe's run.name if there is one, by what the recipe says now. Everything that the user
    wrote is checked here, before anything is loaded or a folder made. `local`: the run is to be trained in one process.
    """
    if (recipe is None) == (resume is None):
        raise BadInput("give either --config RECIPE.yaml for a new run or --resume RUN for one that was stopped")
    wanted: Config | None = None
    if recipe is not None:
        wanted = config = configuration.load(recipe, overrides)
        if resume_or_start and not config.run.name:
            raise BadInput("--resume-or-start: run.name must name the run")
        there = RunFolder.of(Path(config.run.root) / config.run.name, config)
        if not (resume_or_start and there.store.holds_run()):
            check(config, local)
            return *RunFolder.create(config, f"{recipe.stem}-{datetime.now():%Y%m%d-%H%M%S}"), False
        resume, overrides = there.home, [f"run.root={json.dumps(config.run.root)}"]
    assert resume is not None
    if "://" in resume:
        folder, stored = _bring(resume, overrides)
    else:
        folder, stored = RunFolder.open(Path(resume), [])
        if stored.run.storage:
            folder, stored = _bring(folder.home, overrides, folder.path)
    there_it_is = f"run.storage={json.dumps(stored.run.storage)}"
    config = wanted or configuration.build(stored.model_dump(mode="json"), [*overrides, there_it_is], folder.home)
    _check_same_run(folder, stored, config)
    check(config, local)
    replace_file(folder.path / "config.yaml", config.to_yaml())
    folder.store.push()
    return folder, config, True


def resumable(causes: Iterable[BaseException], folder: RunFolder, *more: type[BaseException]) -> BadInput | None:
    """The end of a run as one line that says how to go on: for bad input or a bad forest, a step that is not finite, an
    error of the types `more`, or a full disk. None for any other cause."""
    from treeadv.learning.report import NonFinite  # loads torch

    mendable = (BadInput, BadForest, NonFinite, *more)
    cause = next((cause for cause in causes if isinstance(cause, mendable)), None)
    message = one_line(cause) if cause else ""
    if not message and shutil.disk_usage(folder.path).free < FULL_DISK:  # the error of torch's writer names no cause
        message = f"no space left on the disk of {folder.path}: make room, or choose another run.root"
    if not message:
        return None
    kind = RunFailed if isinstance(cause, RunFailed) else BadInput
    return kind(f"{message} (what was done is kept: treeadv train --resume {shlex.quote(folder.home)})")


def _check_same_run(folder: RunFolder, stored: Config, wanted: Config) -> None:
    """Refuse what would make another run of it."""
    for section, name in (("run", "seed"), ("run", "name"), ("model", "path"), ("task", None)):
        was, now = (
            getattr(c, section) if name is None else getattr(getattr(c, section), name) for c in (stored, wanted)
        )
        if was != now:
            key = section if name is None else f"{section}.{name}"
            raise BadInput(
                f"{key}: the run {folder.home} was begun with another ({was}); give it another run.name, or the old"
                " value"
            )


def _bring(uri: str, overrides: list[str], path: Path | None = None) -> tuple[RunFolder, Config]:
    """The run at a URI in a folder of this machine: `path`, or that of run.root. The store holds the records of all
    steps that are in a checkpoint there; whatever more the folder held is of steps that are taken again."""
    text = object_store(uri, Path()).pull("config.yaml")
    if not text:
        raise BadInput(f"{uri}: no run there (no config.yaml); name the run as {{run.storage}}/{{run.name}}")
    parent, name = split(uri)
    here = [f"run.storage={json.dumps(parent)}", f"run.name={json.dumps(name)}"]  # it may have been moved
    stored = configuration.build(yaml.safe_load(text), here, uri)
    root = configuration.build(stored.model_dump(mode="json"), overrides, uri).run.root
    run_path = path or Path(root) / name
    folder = RunFolder(run_path, object_store(uri, run_path))
    folder.store.check()
    _claim(folder, path is not None)
    replace_file(folder.path / "config.yaml", stored.to_yaml())
    folder.rewind(folder.last_checkpoint())
    return folder, stored


def _claim(folder: RunFolder, known: bool) -> None:
    """Make the folder, unless another run has it."""
    if not known and (folder.path / "config.yaml").is_file() and named_store(str(folder.path)).home != folder.home:
        raise BadInput(f"run folder {folder.path} is of another run than {folder.home}: choose another run.root")
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise BadInput(f"run folder {folder.path}: cannot be made ({e.strerror}); choose another run.root") from e


def check(config: Config, local: bool) -> None:
    """What a type cannot say: names that must exist, ports that must be free. `BadInput` for the first fault."""
    objective.build_objective(config.learner, config.sampling)
    find_verifier(config.task.grader)
    build_rule(config.sampling.rule, config.sampling.rule_options)
    check_path(config.model.path)
    check_answers(first_problems(problem_source(config.task, config.run.seed)), config)
    if "://" in config.run.root:
        raise BadInput(
            f"run.root={config.run.root}: is a path on this machine; an object store is named by run.storage"
        )
    if config.run.storage and config.queue.fsync == "none":
        raise BadInput(f"queue.fsync=none would never write to {config.run.storage}; use interval or always")
    check_engine(config)
    if local:
        _check_local(config)
    for name, gpus in (("generator", config.generator.gpus), ("learner", config.learner.gpus)):
        if gpus > 1 and gpus != int(gpus):
            raise BadInput(f"{name}.gpus={gpus:g}: more than one GPU is handed out in whole ones")
    _check_port(config.metrics.host, config.metrics.port)


def check_answers(problems: Sequence[Problem], config: Config) -> None:
    """Grade each gold answer against itself; log how many cannot be met. `BadInput` where a verifier fails or where all
    golds cannot be met."""
    golds = [Gold(place=p.id, text=p.answer, verifier=p.verifier, meta=p.meta) for p in problems]
    c = config.reward
    if unmet := check_golds(golds, c.workers, c.timeout, c.memory_mb):
        log.warning("%s: %s", config.task.source, unmet)


def _check_local(config: Config) -> None:
    for role, count in (("generator", config.generator.count), ("learner", config.learner.count)):
        if count > 1:
            raise BadInput(f"{role}.count={count}: --local has one {role}; set {role}.count=1 or leave --local out")
    behind = config.local.staleness * config.learner.updates_per_step
    if behind > (bound := config.queue.max_staleness):
        raise BadInput(
            f"local.staleness={config.local.staleness}: queue.max_staleness={bound} would drop every forest; raise it"
            " too"
        )


def _check_port(host: str, port: int) -> None:
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind((host, port))
        except OSError as e:
            if isinstance(e, socket.gaierror):
                raise BadInput(f"metrics.host={host}: no such address ({e.strerror})") from e
            raise BadInput(
                f"metrics.port={port}: cannot listen on {host}:{port} ({e.strerror}); choose another, or 0 for any"
            ) from e
