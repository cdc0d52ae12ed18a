"""Tests faults of a real run: signals, lack of memory, faults of Ray, damaged files, a second driver. The run must
continue, or end with a command that continues it. No forest may be lost or trained twice.
"""

from __future__ import annotations

import contextlib
import re
import signal
from pathlib import Path

import psutil
import pytest

from tests.injection import DRAWING, Run
from tests.running import ROLES, sound, wait_for
from tests.test_runs import files
from treeadv.replay.history import read_history
from treeadv.storage.run_folder import RunFolder

# Limit in seconds from a kill to the next step. It takes up to 10 s on two quiet cores, and 21 s for a driver
WITHIN = 60
LOADING = "treeadv.engines.embedded:EmbeddedEngine._load"  # a generator loads new weights
STEPPING = "treeadv.learning.trainer:learning_rate"
LEASING = "treeadv.replay.store:ReplayStore.lease"
# role -> activity of its process at the fault -> (point in the code, victim). The process that reaches the point kills
# the victim; "" is the process itself. A second pair applies before the run has recovered from the first
STATES: dict[str, dict[str, tuple[str, ...]]] = {
    "Generator": {
        "working": (DRAWING, ""),
        "writing": ("actors.generator:Generator._count", ""),
        "updating weights": (LOADING, ""),
        "failing": (DRAWING, "fails"),  # its engine raises an error, and the process lives
    },
    "verifier": {
        "working": ("tests.parity:has_even_sum", ""),
        "writing": ("json:dumps", ""),
        "updating weights": (LOADING, "verifier"),
    },
    "RewardActor": {
        "working": ("treeadv.rewards.grading:grade_forest", ""),
        "writing": ("actors.reward:RewardActor._graded", ""),
        "updating weights": (LOADING, "RewardActor"),
    },
    "ReplayQueue": {
        "working": (LEASING, ""),
        "writing": ("treeadv.storage.local:LocalFile.write", ""),
        "updating weights": (LOADING, "ReplayQueue"),
        "handing over what it read back": (LEASING, "", "actors.learner:Learner.step", "ReplayQueue"),
    },
    "Learner": {
        "working": (STEPPING, ""),
        "writing": ("treeadv.learning.trainer:Trainer.write_files", ""),
        "updating weights": ("actors.learner:Learner.publish", ""),
    },
    "driver": {
        "working": (STEPPING, "driver"),
        "writing": ("treeadv.storage.run_folder:RunFolder.record", ""),
        "sealing a checkpoint": ("treeadv.storage.run_store:LocalRunStore.seal", ""),
        "updating weights": (LOADING, "driver"),
    },
}


def test_run_survives_a_hung_and_two_killed_roles(tmp_path: Path, tiny_model: Path) -> None:
    """This fast test covers a part of the slow tests below, which cover each role."""
    run = Run(tmp_path, tiny_model, run__heartbeat_timeout=5.0)
    hung = run.hosts("RewardActor")[0]
    hung.suspend()
    run.kill_at(DRAWING, "")
    run.wait_until_dead(hung)
    run.recover("Generator")
    run.kill_at(LEASING, "")
    run.recover("ReplayQueue")
    assert "gave no heartbeat for 5 s" in run.output_so_far()
    for role in ("reward", "generator"):  # the alert TreeadvActorsRestarting uses these series
        assert run.exported("treeadv_actor_restarts_total", role=role) >= 1
    run.end()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("role", STATES)
def test_run_survives_a_role_killed_in_any_state(tmp_path: Path, tiny_model: Path, role: str) -> None:
    run = Run(tmp_path, tiny_model)
    seconds = {}
    run.kill_idle(role)
    seconds["idle"] = run.recover(role)
    for state, (*first, point, victim) in STATES[role].items():
        if first:
            run.kill_at(*first)
        run.kill_at(point, victim)
        seconds[state] = run.recover(role)
    assert role != "Learner" or run.exported("treeadv_resumes_total") > 3  # the alert TreeadvActorsRestarting fires
    run.end()
    assert max(seconds.values()) < WITHIN, seconds
    assert run.repeats.count > 0 or role not in ("Learner", "driver")  # these roles return to a checkpoint
    print(seconds)


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["", "fails"])
def test_role_that_keeps_dying_ends_the_run_with_the_cause(tmp_path: Path, tiny_model: Path, victim: str) -> None:
    run = Run(tmp_path, tiny_model, generator__count=1)
    run.arm(at=DRAWING, victim=victim, always=True)
    said = run.output()
    last = said.strip().splitlines()[-1]
    assert said.count("Traceback") == 0, said
    assert last.startswith("treeadv: error: generator: died 6 times since the last step; the last cause: "), last
    assert ("the engine failed: RuntimeError('injected')" in last) == (victim == "fails")
    assert "--resume" in last
    sound(run.run)


@pytest.mark.slow
@pytest.mark.parametrize("role", ROLES)
def test_hung_role_is_killed_and_the_run_continues(tmp_path: Path, tiny_model: Path, role: str) -> None:
    run = Run(tmp_path, tiny_model, run__heartbeat_timeout=5.0)
    hung = run.hosts(role)[0]
    hung.suspend()
    run.wait_until_dead(hung)
    seconds = run.recover(role)
    assert "gave no heartbeat for 5 s" in run.output_so_far()
    run.end()
    assert seconds < WITHIN


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("role", ROLES)
def test_role_stopped_in_its_constructor_is_replaced(tmp_path: Path, tiny_model: Path, role: str) -> None:
    # on a busy machine a learner needs over 20 s to start
    run = Run(tmp_path, tiny_model, run__start_timeout=45.0)
    stopped = run.stop_in_constructor(role)
    run.wait_until_dead(stopped)
    run.recover(role)
    said = run.output_so_far()
    assert "did not start within 45 s (run.start_timeout): it is " in said, said
    run.end()


@pytest.mark.slow
def test_generator_killed_by_the_memory_monitor_is_replaced(tmp_path: Path, tiny_model: Path) -> None:
    """Ray raises OutOfMemoryError for such a generator, which is not a RayActorError."""
    threshold = psutil.virtual_memory().percent / 100 + 0.12
    if threshold > 0.9:
        pytest.skip("the memory of this machine is in use")
    monitor = {"RAY_memory_usage_threshold": f"{threshold:.2f}", "RAY_memory_monitor_refresh_ms": "100"}
    run = Run(tmp_path, tiny_model, environment=monitor)
    run.kill_at(DRAWING, "hoards")
    run.recover("Generator")
    run.end()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_run_goes_on_after_a_pause_of_the_gcs(tmp_path: Path, tiny_model: Path) -> None:
    run = Run(tmp_path, tiny_model)
    before = run.newest_step()
    run.pause("gcs_server", 50)
    assert run.newest_step() > before  # the run trains in the meantime
    run.recover("Generator")
    run.kill_at(DRAWING, "")  # the recovery shows that Ray can place actors again
    run.recover("Generator")
    run.end()
    assert "Traceback" not in run.output_so_far()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
def test_lost_raylet_ends_the_run_with_the_command_that_goes_on(
    tmp_path: Path, tiny_model: Path, fault: signal.Signals
) -> None:
    run = Run(tmp_path, tiny_model)
    (raylet,) = run.hosts("raylet")
    raylet.send_signal(fault)
    try:
        said = run.output()
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            raylet.kill()
    last = said.strip().splitlines()[-1]
    assert last.startswith("treeadv: error: the Ray node of the driver died"), said[-3000:]
    assert "Traceback" not in said
    run.resume_as_printed()
    run.recover("Generator")
    run.end()


@pytest.mark.slow
def test_run_resumes_from_the_checkpoint_before_a_damaged_one(tmp_path: Path, tiny_model: Path) -> None:
    run = Run(tmp_path, tiny_model)
    wait_for(lambda: len(RunFolder(run.run).checkpoints()) == 2, run.process)
    run.kill_driver()
    step = run.flip_checkpoint()
    run.recover("driver")
    assert re.search(rf"step-{step} is ignored: \S+\.safetensors is damaged", run.output_so_far())
    run.end()
    assert run.repeats.count > 0


@pytest.mark.slow
def test_forest_with_a_damaged_payload_is_drawn_again(tmp_path: Path, tiny_model: Path) -> None:
    run = Run(tmp_path, tiny_model)
    run.kill_driver()
    forest = run.flip_payload()
    run.recover("driver")
    wait_for(lambda: read_history(str(run.run)).attempts[forest].damaged, run.process)
    run.end()


@pytest.mark.slow
def test_second_driver_changes_no_byte_of_a_live_run(tmp_path: Path, tiny_model: Path) -> None:
    """The processes of the live run are suspended, so every change comes from the second driver."""
    run = Run(tmp_path, tiny_model)
    with run.suspended():
        before = files(run.run)
        assert {"config.yaml", "targets.json", "metrics.jsonl", "lock"} <= before.keys()
        for how in (["--resume", run.run], ["--config", tmp_path / "recipe.yaml", "--resume-or-start"]):
            refused = run.second_driver(*how)
            assert refused.returncode == 2 and refused.stderr.count("\n") == 1, refused.stderr
            assert f"in use by process {run.process.pid}; stop that run" in refused.stderr
            assert files(run.run) == before
    run.recover("Generator")
    run.end()
