"""Opens the run that a user asks for: a new one of a recipe, or a stopped one. Checks all that the user wrote.

Another driver may be at work on the run. So the run is locked first, and its files stay as they are until its journal
and its trainer have accepted the checkpoint (`Launch.accept`).
"""

from __future__ import annotations

import json
import shlex
import shutil
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
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
from treeadv.storage.lock import LocalLock
from treeadv.storage.run_folder import RunFolder, named_store
from treeadv.storage.run_store import object_store
from treeadv.visible import visible_logger

log = visible_logger(__name__)
FULL_DISK = 1 << 20  # a disk with fewer free bytes counts as full


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A run that this process may drive while it holds `lock`."""

    folder: RunFolder
    config: Config
    resumed: bool
    lock: LocalLock

    def accept(self, step: int) -> None:
        """Change the files of the run, now that its journal and its trainer have accepted the checkpoint of `step`."""
        self.folder.rewind(step)
        replace_file(self.folder.path / "config.yaml", self.config.to_yaml())
        self.folder.forget_end()
        self.folder.store.push()

    def explain(self, causes: Iterable[BaseException], *more: type[BaseException]) -> BadInput | None:
        """Return the end of the run as one line that says how to go on; None for a cause that no user can mend.

        A user can mend bad input, a bad forest, a step that is not finite, an error of the types `more`, and a full
        disk. A new run that ends before it is accepted leaves no folder, so that the same command works again.
        """
        from treeadv.learning.report import NonFinite  # loads torch

        mendable = (BadInput, BadForest, NonFinite, *more)
        cause = next((cause for cause in causes if isinstance(cause, mendable)), None)
        message = one_line(cause) if cause else ""
        path, home = self.folder.path, self.folder.home
        if not message and shutil.disk_usage(path).free < FULL_DISK:  # the error of torch's writer names no cause
            message = f"no space left on the disk of {path}: make room, or choose another run.root"
        if not message:
            return None
        kind = RunFailed if isinstance(cause, RunFailed) else BadInput
        if not self.resumed and not self.folder.accepted and "://" not in home:
            shutil.rmtree(path)
            return kind(f"{message} (the run has not started; {path} is removed)")
        return kind(f"{message} (what was done is kept: treeadv train --resume {shlex.quote(home)})")


def launch(
    recipe: Path | None, resume: str | None, resume_or_start: bool, overrides: list[str], local: bool = False
) -> Launch:
    """Open a new run of `recipe`, or the run `resume`: its folder or, with run.storage, its URI.

    `overrides` change the configuration from now on. `resume_or_start` resumes the run that the recipe names if it
    exists, with the configuration of the recipe. `local`: the run is to be trained in one process. Raises `BadInput`
    before anything is loaded; the files of a run are then as they were.
    """
    if (recipe is None) == (resume is None):
        raise BadInput("give either --config RECIPE.yaml for a new run or --resume RUN for one that was stopped")
    if resume is not None:
        return _resume(resume, overrides, None, local)
    assert recipe is not None
    config = configuration.load(recipe, overrides)
    if resume_or_start and not config.run.name:
        raise BadInput("--resume-or-start: run.name must name the run")
    folder = RunFolder.of(Path(config.run.root) / config.run.name, config)
    if resume_or_start and folder.store.holds_run():
        return _resume(folder.home, [f"run.root={json.dumps(config.run.root)}"], config, local)
    check(config, local)
    folder, config, lock = RunFolder.create(config, f"{recipe.stem}-{datetime.now():%Y%m%d-%H%M%S}")
    return Launch(folder=folder, config=config, resumed=False, lock=lock)


def _resume(home: str, overrides: list[str], recipe: Config | None, local: bool) -> Launch:
    """Open the run at `home` with the configuration of `recipe`, or else with its own and `overrides`."""
    path: Path | None = None
    if "://" not in home:
        path, (folder, stored) = Path(home), RunFolder.open(Path(home), [])
        home = folder.home
    if "://" in home:
        folder, stored, lock = _download(home, overrides, path)
    else:
        lock = LocalLock(folder.path)
    try:
        same_storage = f"run.storage={json.dumps(stored.run.storage)}"
        config = recipe or configuration.build(stored.model_dump(mode="json"), [*overrides, same_storage], folder.home)
        _check_same_run(folder, stored, config)
        check(config, local)
    except BaseException:
        lock.release()
        raise
    return Launch(folder=folder, config=config, resumed=True, lock=lock)


def _check_same_run(folder: RunFolder, stored: Config, config: Config) -> None:
    """Raise `BadInput` for a value that would make it another run."""
    values = (
        ("run.seed", stored.run.seed, config.run.seed),
        ("run.name", stored.run.name, config.run.name),
        ("model.path", stored.model.path, config.model.path),
        ("task", stored.task, config.task),
    )
    for key, old, new in values:
        if old != new:
            raise BadInput(
                f"{key}: the run {folder.home} has another ({old}); choose another run.name, or the old value"
            )


def _download(uri: str, overrides: list[str], path: Path | None) -> tuple[RunFolder, Config, LocalLock]:
    """Bring the run at a URI into a folder of this machine: `path`, or that of run.root.

    The store holds the records of all steps up to its last checkpoint; others in the folder are of steps that will be
    taken again.
    """
    text = object_store(uri, Path()).pull("config.yaml")
    if not text:
        raise BadInput(f"{uri}: holds no run (no config.yaml); name the run as {{run.storage}}/{{run.name}}")
    parent, name = split(uri)
    place = [f"run.storage={json.dumps(parent)}", f"run.name={json.dumps(name)}"]  # the run may have been moved
    stored = configuration.build(yaml.safe_load(text), place, uri)
    root = configuration.build(stored.model_dump(mode="json"), overrides, uri).run.root
    run_path = path or Path(root) / name
    folder = RunFolder(run_path, object_store(uri, run_path))
    folder.store.check()
    if path is None and (run_path / "config.yaml").is_file() and named_store(str(run_path)).home != folder.home:
        raise BadInput(f"run folder {run_path} belongs to another run than {folder.home}: choose another run.root")
    try:
        run_path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise BadInput(f"run folder {run_path}: cannot be made ({e.strerror}); choose another run.root") from e
    lock = LocalLock(run_path)
    try:
        replace_file(run_path / "config.yaml", stored.to_yaml())
        folder.rewind(folder.last_checkpoint())
    except BaseException:
        lock.release()
        raise
    return folder, stored, lock


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
