"""The opening of a run for a command: a new run of a recipe, or a stopped run. The module also checks the user's input.

Another driver may be running the run. So this module locks the run first. The files of the run do not change before
its journal and its trainer have accepted the checkpoint (`Launch.accept`)."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from treeadv import config as configuration
from treeadv.checks import check_run
from treeadv.config import Config
from treeadv.data.paths import absolute, moved, same_task, with_content
from treeadv.data.tasks import check_content
from treeadv.disk import replace_file
from treeadv.errors import BadForest, BadInput, RunFailed, one_line
from treeadv.places import check_typed, is_uri
from treeadv.storage.lock import LocalLock
from treeadv.storage.run_folder import RunFolder, named_store, stored_config
from treeadv.storage.run_store import object_store
from treeadv.visible import visible_logger

log = visible_logger(__name__)
FULL_DISK = 1 << 20  # a disk with fewer free bytes counts as full


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A run that this process may drive as long as it holds `lock`."""

    folder: RunFolder
    config: Config
    resumed: bool
    lock: LocalLock

    def accept(self, step: int) -> None:
        """Change the files of the run. The journal and the trainer must have accepted the checkpoint of `step`
        before the call."""
        self.folder.rewind(step)
        self.folder.replace_configuration(self.config, step)
        self.folder.clear_end()
        self.folder.store.push()

    def explain(
        self, causes: Iterable[BaseException], *more: type[BaseException], local: bool = False
    ) -> BadInput | None:
        """Return the causes of the end of a run as an error of one line with a remedy; None if the cause is a defect.

        A user can correct bad input, a bad forest, a step with a non-finite update, an error of the types `more`,
        and a full disk. A new run that ends before `accept` leaves no folder, so the user can repeat the same
        command."""
        from treeadv.learning.report import NonFinite  # imported here, because it loads torch

        mendable = (BadInput, BadForest, NonFinite, *more)
        cause = next((cause for cause in causes if isinstance(cause, mendable)), None)
        message = one_line(cause) if cause else ""
        path, uri = self.folder.path, self.folder.uri
        if not message and shutil.disk_usage(path).free < FULL_DISK:  # torch's error does not name the full disk
            message = f"no space left on the disk of {path}: make room, or choose another run.root"
        if not message:
            return None
        kind = RunFailed if isinstance(cause, RunFailed) else BadInput
        resume = f"treeadv train {'--local ' * local}--resume"
        if not self.resumed and not self.folder.accepted and not is_uri(uri):
            shutil.rmtree(path, ignore_errors=True)
            after = f"delete {path} when the disk is repaired" if path.exists() else f"{path} is removed"
            return kind(f"{message} (the run has not started; {after})")
        return kind(f"{message} (what was done is kept: {resume} {shlex.quote(uri)})")


Check = Callable[[Config], None]


def launch(
    recipe: Path | None, resume: str | None, resume_or_start: bool, overrides: list[str], check: Check = check_run
) -> Launch:
    """Open a new run of `recipe`, or the run `resume`. `resume` is the folder of the run or, with run.storage, its URI.

    `overrides` change the configuration of the following steps. With `resume_or_start`, if the run that the recipe
    names exists, it is resumed with the configuration of the recipe. `check` raises `BadInput` for a configuration
    that cannot run. Nothing is loaded or created before `check`, so an error leaves the files of a run unchanged."""
    if (recipe is None) == (resume is None):
        raise BadInput("give either --config RECIPE.yaml for a new run or --resume RUN for one that was stopped")
    if resume is not None:
        return _resume(resume, overrides, None, check)
    assert recipe is not None
    config = read_recipe(recipe, overrides)
    if resume_or_start and not config.run.name:
        raise BadInput("--resume-or-start: run.name must name the run")
    folder = RunFolder.of(Path(config.run.root) / config.run.name, config)
    if resume_or_start and folder.store.holds_run():
        return _resume(folder.uri, [f"run.root={json.dumps(config.run.root)}"], config, check)
    check(config)
    folder, config, lock = RunFolder.create(config, f"{recipe.stem}-{datetime.now():%Y%m%d-%H%M%S}")
    return Launch(folder=folder, config=config, resumed=False, lock=lock)


def read_recipe(recipe: Path, overrides: list[str]) -> Config:
    """Return the complete configuration of a new run, with absolute paths and the hash of its data.

    Raises `BadInput` if the recipe or its data cannot be used."""
    config = absolute(configuration.load(recipe, overrides))
    for source in config.task.parts:
        check_content(source.source, config.task)
    return with_content(config)


def _resume(uri: str, overrides: list[str], recipe: Config | None, check: Check) -> Launch:
    """Open the run at `uri`. Its configuration is `recipe`, or its stored configuration with `overrides` if `recipe`
    is None."""
    path: Path | None = None
    check_typed(uri, "--resume")
    if not is_uri(uri):
        path, (folder, stored) = Path(uri), RunFolder.open(Path(uri), [])
        uri = folder.uri
    if is_uri(uri):
        folder, stored, lock = _download(uri, overrides, path)
    else:
        lock = LocalLock(folder.path)
    try:
        stored = moved(absolute(stored), folder.path.absolute().parent)
        same_storage = f"run.storage={json.dumps(stored.run.storage)}"
        config = recipe or configuration.build(stored.model_dump(mode="json"), [*overrides, same_storage], folder.uri)
        config = with_content(absolute(config))
        _check_same_run(folder, stored, config)
        check(config)
    except BaseException:
        lock.release()
        raise
    return Launch(folder=folder, config=config, resumed=True, lock=lock)


def _check_same_run(folder: RunFolder, stored: Config, config: Config) -> None:
    """Raise `BadInput` if `config` changes a value that a resumed run must not change."""
    values: tuple[tuple[str, object, object], ...] = (
        ("run.seed", stored.run.seed, config.run.seed),
        ("run.name", stored.run.name, config.run.name),
        ("model.path", stored.model.path, config.model.path),
        *(
            [("eval", _fixed_eval_settings(stored), _fixed_eval_settings(config))]
            if stored.eval.every and config.eval.every
            else []
        ),
    )
    for key, old, new in values:
        if old != new:
            raise BadInput(
                f"{key}: the run {folder.uri} has another ({old}); choose another run.name, or the old value"
            )
    for was, now in zip(stored.task.parts, config.task.parts, strict=False):
        begun, found = stored.task.content.get(was.source), config.task.content.get(now.source)
        if begun and found and begun != found:
            raise BadInput(
                f"{now.source}: its content is not the one that the run {folder.uri} began with (SHA-256"
                f" {found[:12]}..., then {begun[:12]}...): restore it, or start a new run"
            )
    if not same_task(stored.task, config.task):
        changed = [k for k in type(config.task).model_fields if getattr(stored.task, k) != getattr(config.task, k)]
        raise BadInput(
            f"task: the run {folder.uri} has another ({', '.join(changed)}); choose another run.name, or the old value"
        )


def _fixed_eval_settings(config: Config) -> dict[str, object]:
    """Return the settings that must not change, because the evaluations of a run must stay comparable.

    Only the interval between evaluations may change."""
    return config.eval.model_dump(exclude={"every"})


def _download(uri: str, overrides: list[str], path: Path | None) -> tuple[RunFolder, Config, LocalLock]:
    """Download the run at a URI into a folder of this machine. The folder is `path`, or a folder in run.root.

    The store holds the records of all steps up to its last checkpoint. If the folder holds records of later steps,
    the run repeats these steps."""
    stored = stored_config(uri)
    name = stored.run.name
    root = configuration.build(stored.model_dump(mode="json"), overrides, uri).run.root
    run_path = path or Path(root) / name
    folder = RunFolder(run_path, object_store(uri, run_path))
    folder.store.check()
    if path is None and (run_path / "config.yaml").is_file() and named_store(str(run_path)).uri != folder.uri:
        raise BadInput(f"run folder {run_path} belongs to another run than {folder.uri}: choose another run.root")
    try:
        run_path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise BadInput(f"run folder {run_path} cannot be created ({e.strerror}); choose another run.root") from e
    lock = LocalLock(run_path)
    try:
        replace_file(run_path / "config.yaml", stored.to_yaml())
        folder.rewind(folder.last_checkpoint())
    except BaseException:
        lock.release()
        raise
    return folder, stored, lock
