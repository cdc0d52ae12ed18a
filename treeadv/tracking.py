"""Experiment trackers. They get the figures of every step under the names of metrics.jsonl.

`run.trackers` lists entries of `TRACKERS` or `module:Name`. Such a name belongs to a class with the methods of
`TrackerClass`, whose objects have the methods of `Tracker`. If a tracker fails, the log names the tracker and the
run continues without it."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from treeadv.errors import BadInput, one_line
from treeadv.extensions import load_extension
from treeadv.jsonl import JsonMapping
from treeadv.visible import visible_logger

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

log = visible_logger("treeadv.tracking")
TRACKERS = {
    "tensorboard": "treeadv.tracking:TensorBoard",
    "wandb": "treeadv.tracking:WandB",
    "mlflow": "treeadv.tracking:MLflow",
}


class Tracker(Protocol):
    """One running experiment tracker."""

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Record the figures of a step. A resumed run may log a step again."""
        ...

    def close(self) -> None:
        """Write the figures that are still in memory."""
        ...


class TrackerClass(Protocol):
    """The class of a tracker. A call with (folder of the run, configuration as a mapping) starts the tracker."""

    def check(self) -> None:
        """Raise `BadInput` if the tracker cannot be used, for example because its package is missing."""
        ...

    def __call__(self, folder: Path, config: JsonMapping) -> Tracker: ...


class TensorBoard:
    """A tracker that writes event files into the folder `tensorboard` of the run. `tensorboard --logdir RUN` shows
    them."""

    @staticmethod
    def check() -> None:
        _need("tensorboardX", "tensorboard")

    def __init__(self, folder: Path, config: JsonMapping) -> None:
        self._folder = folder / "tensorboard"
        self._writer: SummaryWriter | None = None

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        if self._writer is None:
            from tensorboardX import SummaryWriter

            # With purge_step the viewer hides the figures that an earlier attempt logged for this step and later steps.
            self._writer = SummaryWriter(str(self._folder), purge_step=step)
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class WandB:
    """A tracker that logs to Weights & Biases.

    The environment variables of W&B choose the project and the entity. With WANDB_MODE=offline W&B writes into the
    run folder. A resumed run continues the same W&B run."""

    @staticmethod
    def check() -> None:
        _need("wandb", "wandb")
        if os.environ.get("WANDB_MODE") not in ("offline", "disabled") and not _has_key():
            raise BadInput("run.trackers=wandb: no API key; set WANDB_API_KEY, or WANDB_MODE=offline")

    def __init__(self, folder: Path, config: JsonMapping) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "treeadv"),
            name=folder.name,
            id=folder.name,
            resume="allow",
            dir=str(folder),
            config=dict(config),
        )
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log({**figures, "step": step})

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """A tracker that logs to an MLflow server.

    The environment variables of MLflow choose the server and the experiment. A resumed run continues the same MLflow
    run. The fields of the configuration are its parameters."""

    @staticmethod
    def check() -> None:
        _need("mlflow", "mlflow", package="mlflow-skinny")
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            raise BadInput("run.trackers=mlflow: no server; set MLFLOW_TRACKING_URI, for example http://HOST:5000")

    def __init__(self, folder: Path, config: JsonMapping) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "treeadv")
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        earlier = self._client.search_runs([experiment], f"tags.treeadv_run = {json.dumps(folder.name)}", max_results=1)
        if earlier:
            self._run = earlier[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
            return
        tags = {"treeadv_run": folder.name}
        self._run = self._client.create_run(experiment, run_name=folder.name, tags=tags).info.run_id
        fields = [Param(key, text[:_PARAMETER]) for key, text in leaves(config)]
        for first in range(0, len(fields), _PARAMETERS):
            self._client.log_batch(self._run, params=fields[first : first + _PARAMETERS])

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._run, metrics=[Metric(name, x, now, step) for name, x in figures.items()])

    def close(self) -> None:
        self._client.set_terminated(self._run)


_PARAMETERS, _PARAMETER = 100, 6000  # MLflow takes so many parameters at a time, each of so many characters


class Trackers:
    """All trackers of a run."""

    def __init__(self, names: Sequence[str], folder: Path, config: JsonMapping) -> None:
        self._made = {name: tracker for name in names if (tracker := _start(name, folder, config)) is not None}

    def log(self, record: JsonMapping, prefix: str = "") -> None:
        """Give the numbers of a record to every tracker. `prefix` precedes their names."""
        figures = {prefix + name: value for name, value in numbers(record) if name != "step"}
        for name, tracker in list(self._made.items()):
            try:
                tracker.log(int(record["step"]), figures)
            except Exception as e:  # a tracker may raise any error, and the run must continue
                log.error("the tracker %s failed at step %s and is left out: %s", name, record["step"], one_line(e))
                del self._made[name]

    def close(self) -> None:
        """Close every tracker."""
        for name, tracker in self._made.items():
            try:
                tracker.close()
            except Exception as e:
                log.error("the tracker %s could not be closed: %s", name, one_line(e))


def numbers(record: JsonMapping, prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield (name, value) for each finite number of a record. The name of a number in an inner mapping is
    outer/inner."""
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and math.isfinite(value):
            yield prefix + name, float(value)


def leaves(config: JsonMapping, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted key, value as text) for each field of a configuration."""
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, str(value)


def check_trackers(names: Sequence[str]) -> None:
    """Raise `BadInput` for a tracker that is unknown or that cannot be used."""
    for name in names:
        _class(name).check()


def _class(name: str) -> TrackerClass:
    found = load_extension("run.trackers", name, TRACKERS)
    if missing := [method for method in ("check", "log", "close") if not hasattr(found, method)]:
        raise BadInput(f"run.trackers={name} is not a tracker: it lacks {', '.join(missing)}")
    return cast(TrackerClass, found)


def _start(name: str, folder: Path, config: JsonMapping) -> Tracker | None:
    try:
        return _class(name)(folder, config)
    except BadInput:
        raise
    except Exception as e:
        log.error("the tracker %s could not be started and is left out: %s", name, one_line(e))
        return None


def _need(module: str, name: str, package: str = "") -> None:
    from importlib.util import find_spec

    if find_spec(module) is None:
        raise BadInput(f"run.trackers={name} needs the package {package or module}: pip install {package or module}")


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    import wandb

    return bool(wandb.api.api_key)
