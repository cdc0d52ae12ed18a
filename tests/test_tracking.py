"""Tests experiment trackers with the real TensorBoard writer, and with the real clients of W&B and MLflow offline."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from tensorboardX.proto import event_pb2

from tests.deploy.servers import eventually
from tests.report.runs import record
from treeadv.errors import BadInput
from treeadv.report.progress import Progress
from treeadv.tracking import Trackers, check_trackers, numbers


class Failing:
    """A tracker that fails at step 2."""

    @staticmethod
    def check() -> None: ...

    def __init__(self, folder: Path, config: object) -> None:
        self.seen: list[int] = []

    def log(self, step: int, figures: object) -> None:
        if step == 2:
            raise OSError("the server is away")
        self.seen.append(step)

    def close(self) -> None: ...


def scalars(folder: Path) -> Iterator[tuple[str, int, float]]:
    """Yield (name, step, value) of every event in a TensorBoard folder."""
    for file in sorted(folder.iterdir()):
        stream = io.BytesIO(file.read_bytes())
        while head := stream.read(12):  # a length of 8 bytes and its checksum
            event = event_pb2.Event.FromString(stream.read(struct.unpack("<Q", head[:8])[0]))
            stream.read(4)
            for value in event.summary.value:
                yield value.tag, event.step, value.simple_value


def test_tensorboard_has_every_number_of_every_record(tmp_path: Path) -> None:
    trackers = Trackers(["tensorboard"], tmp_path, {})
    for step in (1, 2):
        trackers.log(record(step))
    trackers.close()
    found = {(name, step): value for name, step, value in scalars(tmp_path / "tensorboard")}
    expected = {(name, s): value for s in (1, 2) for name, value in numbers(record(s)) if name != "step"}
    assert found == pytest.approx(expected, rel=1e-6)
    assert found["seconds/forward_backward", 1] == 5.0


def test_wandb_offline_run_lies_in_the_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    trackers = Trackers(["wandb"], tmp_path / "demo", {"run": {"seed": 3}})
    (tmp_path / "demo").mkdir(exist_ok=True)
    trackers.log(record(1))
    trackers.close()
    (offline,) = (tmp_path / "demo" / "wandb").glob("offline-run-*-demo/*.wandb")
    # W&B's own process writes the file, and goes on after `finish` has returned.
    eventually(lambda: b"reward_mean" in offline.read_bytes())


def test_mlflow_run_has_every_number_also_after_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real client writes into a folder here, which stands for a server."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "server").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("DO_NOT_TRACK", "true")
    config = {"run": {"seed": 3, "trackers": ["mlflow"]}, "extra": {f"field-{n}": "x" * 7000 for n in range(120)}}
    check_trackers(["mlflow"])
    for step in (1, 2):  # the second tracker is that of a resumed run
        trackers = Trackers(["mlflow"], tmp_path / "demo", config)
        trackers.log(record(step))
        trackers.log({"step": step, "avg": {"value": 0.5}}, "evaluation/")
        trackers.close()
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name("treeadv")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "demo" and run.info.status == "FINISHED"
    assert run.data.params["run.seed"] == "3" and run.data.params["extra.field-119"] == "x" * 6000
    for name, value in numbers(record(2)):
        if name != "step":
            assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)][-1] == (2, value)
    assert [m.step for m in client.get_metric_history(run.info.run_id, "evaluation/avg/value")] == [1, 2]


def test_tracker_that_fails_is_left_out_and_the_others_go_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trackers = Trackers([f"{__name__}:Failing", "tensorboard"], tmp_path, {})
    for step in (1, 2, 3):
        trackers.log(record(step))
    trackers.close()
    assert [r.getMessage() for r in caplog.records if "left out" in r.getMessage()] == [
        f"the tracker {__name__}:Failing failed at step 2 and is left out: the server is away"
    ]
    assert {step for _, step, _ in scalars(tmp_path / "tensorboard")} == {1, 2, 3}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tensorbord", "did you mean tensorboard"),
        ("json:JSONDecoder2", "module json has no JSONDecoder2"),
        ("mlflow", "no server; set MLFLOW_TRACKING_URI"),
        ("wandb", "no API key; set WANDB_API_KEY, or WANDB_MODE=offline"),
    ],
)
def test_unusable_tracker_is_refused_before_the_run(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(BadInput, match=message):
        check_trackers([name])


def test_display_passes_records_and_evaluations_on(tmp_path: Path) -> None:
    trackers = Trackers(["tensorboard"], tmp_path, {})
    with Progress(2, Console(file=io.StringIO()), trackers) as progress:
        progress.update(record(1))
        progress.show_evaluation(json.loads('{"step": 1, "avg": {"value": 0.25}}'))
    trackers.close()
    found = dict((name, value) for name, _, value in scalars(tmp_path / "tensorboard"))
    assert found["evaluation/avg/value"] == 0.25 and found["reward_mean"] == pytest.approx(record(1)["reward_mean"])
