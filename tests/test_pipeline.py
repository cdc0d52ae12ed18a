"""Tests the whole pipeline with its real actors and the tiny model. Roles overlap, and runs stop, resume and scale."""

from __future__ import annotations

import json
import signal
import subprocess
import urllib.request
from pathlib import Path

import pytest
import torch

from actors.cli import main
from tests.running import LIMIT, finish, hosts, recipe, sound, start, steps, wait_for
from treeadv.config import load
from treeadv.replay.audit import audit
from treeadv.storage.record_fields import faults
from treeadv.storage.run_folder import RunFolder


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_model) -> Path:
    """Provide a finished run without faults, and the pages that its /metrics returned during the run."""
    tmp = tmp_path_factory.mktemp("whole")
    # More forests wait for a slot than the calls that a Ray actor accepts by default. The call that frees a slot must
    # still be accepted.
    rows = ({"problem": f"{i}+1=", "answer": str(i + 1)} for i in range(6))
    (tmp / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluation = {"every": 4, "data": str(tmp / "held.jsonl"), "samples": 2}
    process = start("--config", recipe(tmp, tiny_model, run__steps=8, generator__forests=600, eval=evaluation))
    run = tmp / "run"
    wait_for(lambda: steps(run) >= 3, process)
    seen = {}
    for target in json.loads((run / "targets.json").read_text()):
        (address,) = target["targets"]
        seen.setdefault(target["labels"]["role"], []).append(
            (
                urllib.request.urlopen(f"http://{address}/healthz").read(),
                urllib.request.urlopen(f"http://{address}/metrics").read().decode(),
            )
        )
    (tmp / "output").write_text(finish(process))
    (tmp / "seen.json").write_text(json.dumps({r: [(h.decode(), m) for h, m in v] for r, v in seen.items()}))
    return run


def test_finished_run_leaves_a_complete_folder(finished):
    summary = json.loads((finished / "summary.json").read_text())
    records = RunFolder(finished).records()
    assert [r["step"] for r in records] == list(range(1, 9)) and summary["steps"] == 8
    assert [fault for r in records for fault in faults(r)] == []
    assert load(finished / "config.yaml").run.steps == 8
    assert summary["forests"]["trained"] == 8 * 3 and summary["forests"]["leased"] == 0
    assert (
        0 < summary["tokens_trained"] < summary["tokens_expanded"]
        and summary["tokens_generated"] >= summary["tokens_trained"]
    )
    assert "<svg" in (finished / "report.html").read_text()
    sound(finished)


def test_weights_are_evaluated_while_the_run_trains(finished):
    """The first and the last evaluation are always made. The evaluation of step 4 is skipped if the learner is far
    ahead."""
    folder = RunFolder(finished)
    found = folder.evaluations()
    assert [r["step"] for r in found] in ([0, 4, 8], [0, 8])
    for r in found:
        assert r["version"] == r["step"] and r["sets"]["held"]["problems"] == 6
        assert sum(r["sets"]["held"]["verdicts"].values()) == 12
    best = max(found, key=lambda r: r["avg"]["value"])["step"]
    assert folder.store.best_step() == (best or None)
    if best:
        names = {p.name for p in (finished / "best").iterdir()}
        assert {"config.json", "evaluation.json", "tokenizer.json"} <= names and any("safetensors" in n for n in names)
    assert "Held-out problems" in (finished / "report.html").read_text()


def test_checkpoint_is_a_hugging_face_folder_with_new_weights(finished, tiny_model):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    newest = RunFolder(finished).checkpoint(RunFolder(finished).last_checkpoint())
    trained = AutoModelForCausalLM.from_pretrained(newest).state_dict()
    base = AutoModelForCausalLM.from_pretrained(tiny_model).state_dict()
    assert trained.keys() == base.keys() and any(not torch.equal(trained[n], base[n]) for n in base)
    assert AutoTokenizer.from_pretrained(newest).encode("ab") == AutoTokenizer.from_pretrained(tiny_model).encode("ab")


def test_roles_overlap_within_the_staleness_bound(finished):
    records = RunFolder(finished).records()
    assert max(r["staleness_max"] for r in records) <= load(finished / "config.yaml").queue.max_staleness
    assert any(r["staleness_max"] > 0 for r in records)  # generators drew forests while a learner took a step


def test_every_role_serves_metrics_and_health(finished):
    seen = json.loads((finished.parent / "seen.json").read_text())
    assert {role: len(members) for role, members in seen.items()} == {
        "driver": 1,
        "generator": 2,
        "reward": 1,
        "queue": 1,
        "learner": 1,
    }
    assert all(health == "ok\n" for members in seen.values() for health, _ in members)
    value = {role: dict(_samples(members[0][1])) for role, members in seen.items()}
    assert (
        value["driver"]["treeadv_policy_version"] >= 3
        and value["queue"]['treeadv_queue_law_error{unit="forests"}'] == 0
    )
    assert (
        value["learner"]["treeadv_trained_leaves_total"] >= 9 * 4
        and value["generator"]["treeadv_generated_tokens_total"] > 0
    )
    assert sum(v for k, v in value["reward"].items() if k.startswith("treeadv_rewards_total")) > 0


def _samples(text: str):
    for line in text.splitlines():
        if not line.startswith("#"):
            name, _, number = line.rpartition(" ")
            yield name, float(number)


@pytest.mark.slow  # two runs with Ray; tests/local and tests/test_storage.py resume runs in less time
def test_interrupted_run_resumes_from_its_checkpoint(tmp_path, tiny_model):
    process = start("--config", recipe(tmp_path, tiny_model, run__checkpoint_every=100, run__steps=30))
    run = tmp_path / "run"
    wait_for(lambda: steps(run) >= 1, process)
    process.send_signal(signal.SIGINT)
    out = finish(process)
    done = steps(run)
    assert RunFolder(run).last_checkpoint() == done < 30 and f"treeadv train --resume {run}" in out
    sound(run)
    finish(start("--resume", run, f"run.steps={done + 2}"))
    assert steps(run) == done + 2
    sound(run)


@pytest.mark.parametrize(
    "change, message",
    [
        ("model.path=nowhere", "nowhere: no such folder"),
        ("task.source=none.jsonl", "none.jsonl"),
        ("learner.preset=treeadvv", "did you mean treeadv?"),
        ("learner.correction=icepopp", "learner.correction=icepopp is unknown, did you mean icepop?"),
        ("sampling.trees=9", "sampling.trees=9 is more than sampling.leaves=4"),
        ("sampling.tau=-1", "sampling.tau: Input should be greater than or equal to 0, got -1"),
        ("learner.lrr=1", "unknown key learner.lrr, did you mean learner.lr?"),
        ("run.steps=many", "run.steps: "),
        ("steps", "write section.key=value"),
        ("task.verifier=nobody", "nobody"),
        ("metrics.host=nosuch.invalid", "metrics.host=nosuch.invalid: this name has no address"),
        ("generator.gpus=1", "generator.gpus=1: the embedded engine runs on the CPU"),
        ("learner.gpus=1.5", "learner.gpus=1.5: a number of GPUs above 1 must be a whole number"),
    ],
)
def test_bad_input_gives_one_line_and_no_run_folder(tmp_path, tiny_model, capsys, change, message):
    code = main(["train", "--config", str(recipe(tmp_path, tiny_model)), change])
    out = capsys.readouterr().err
    assert code == 2 and message in out and out.startswith("treeadv: error: ") and out.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        ("learner.gpus=1", "generator.gpus and learner.gpus ask for 1 GPUs, but this machine has 0"),
        ("learner.device=cuda", f"learner.device=cuda: torch {torch.__version__} finds no CUDA device on this machine"),
    ],
)
def test_missing_gpu_gives_one_line(tmp_path, tiny_model, capsys, change, message):
    code = main(["train", "--config", str(recipe(tmp_path, tiny_model)), change])
    out = capsys.readouterr().err
    assert code == 2 and not (tmp_path / "run").exists()
    assert out.strip().splitlines()[-1].startswith(f"treeadv: error: {message}"), out


def test_unusable_verifier_is_refused_before_the_run_starts(tmp_path, tiny_model, capsys):
    code = main(["train", "--config", str(recipe(tmp_path, tiny_model)), "task.verifier=no_such_module:judge"])
    out = capsys.readouterr().err
    assert code == 2 and "Traceback" not in out, out
    assert "treeadv: error: verifier 'no_such_module:judge': ModuleNotFoundError" in out.strip().splitlines()[-1], out
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_verifier_that_fails_later_ends_the_run_with_exit_1(tmp_path, tiny_model):
    change = "task.verifier=tests.failing:fails_after_the_first_call"
    calls = tmp_path / "calls"
    process = start("--config", recipe(tmp_path, tiny_model), change, TREEADV_VERIFIER_CALLS=str(calls))
    out = process.output(120)
    assert process.returncode == 1 and "Traceback" not in out, out
    last = out.strip().splitlines()[-1]
    assert last.startswith("treeadv: error: the verifier failed on all of the first "), last
    assert "RuntimeError: broken" in last and "tests/failing.py:" in last and "--resume" in last, last
    sound(tmp_path / "run")


@pytest.mark.slow
def test_batch_that_is_not_finite_is_dropped_and_replaced(tmp_path, tiny_model):
    """The correction is NaN for one forest of the first batch. The run takes all its steps with other forests."""
    path = recipe(tmp_path, tiny_model, learner__correction="tests.failing:NOT_FINITE_ONCE")
    finish(start("--config", path))
    result = audit(str(tmp_path / "run"))
    assert result.sound and result.dropped["not_finite"] == 3, result.table()
    records = RunFolder(tmp_path / "run").records()
    assert [r["step"] for r in records] == list(range(1, 7)) and records[-1]["version"] <= 6
    assert result.rows["trained"]["forests"] == 18


@pytest.mark.slow
@pytest.mark.timeout(700)
def test_run_that_is_never_finite_ends_and_drops_every_batch(tmp_path, tiny_model):
    """Three batches have no finite update. Two are replaced, and the third ends the run. The last line of the output
    has the cause. A run that resumes without the cause takes all its steps with other forests."""
    options = {"learner__correction": "tests.failing:NEVER_FINITE", "learner__max_nonfinite": 2}
    # With a KL term every batch is an update, even a batch of equal rewards
    process = start("--config", recipe(tmp_path, tiny_model, learner__kl=0.1, **options))
    out = process.output(2 * LIMIT)
    last = out.strip().splitlines()[-1]
    assert process.returncode == 2 and "Traceback" not in out, out
    assert last.startswith("treeadv: error: batch of version 0: the loss of an update is not finite; "), last
    assert "learner.max_nonfinite" in last and f"--resume {tmp_path / 'run'}" in last, last
    result = audit(str(tmp_path / "run"))
    assert result.sound and result.dropped["not_finite"] == 9 and steps(tmp_path / "run") == 0, result.table()
    finish(start("--resume", tmp_path / "run", "learner.correction=tis"), 2 * LIMIT)
    result = audit(str(tmp_path / "run"))
    assert result.sound and result.dropped["not_finite"] == 9, result.table()
    assert steps(tmp_path / "run") == 6 and result.rows["trained"]["forests"] == 18


def test_existing_run_folder_is_refused(tmp_path, tiny_model, capsys):
    (tmp_path / "run" / "something").mkdir(parents=True)
    code = main(["train", "--config", str(recipe(tmp_path, tiny_model))])
    out = capsys.readouterr().err
    assert code == 2 and f"run folder {tmp_path / 'run'} exists" in out and "--resume" in out


def test_port_in_use_is_named_in_the_error(tmp_path, tiny_model, capsys):
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        port = s.getsockname()[1]
        code = main(["train", "--config", str(recipe(tmp_path, tiny_model)), f"metrics.port={port}"])
    out = capsys.readouterr().err
    assert code == 2 and f"metrics.port={port}: cannot listen" in out


@pytest.mark.slow
def test_full_disk_gives_one_line_and_keeps_the_run(tmp_path, tiny_model):
    """The disk is a tmpfs of 3 MB. The checkpoints of the tiny model fill it after a few steps."""
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", small], capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    try:
        process = start(
            "--config",
            recipe(tmp_path, tiny_model, run__root=str(small), run__checkpoint_every=1, run__keep_checkpoints=50),
        )
        out = process.output(LIMIT)
        last = out.strip().splitlines()[-1]
        assert process.returncode == 2 and "no space left" in last.lower() and "--resume" in last, out[-3000:]
        sound(small / "run")
    finally:
        subprocess.run(["umount", "--lazy", small], check=True)  # a hung run still uses the disk


@pytest.mark.slow
def test_scaling_out_and_in_loses_no_forest(tmp_path, tiny_model):
    """The run scales from 1 generator to 3 and back to 1 under load. It also scales from 1 learner to 2 learners, which
    reshard the checkpoint."""
    process = start(
        "--config", recipe(tmp_path, tiny_model, run__steps=400, generator__count=1, learner__dtype="float32")
    )
    run = tmp_path / "run"
    folder = RunFolder(run)
    wait_for(lambda: steps(run) >= 2, process)
    for count in (3, 1):
        at = steps(run)
        folder.request({"generator": count})
        wait_for(lambda count=count, at=at: len(hosts(process.pid, "Generator")) == count and steps(run) > at, process)
    for count in (2, 1):
        folder.request({"reward": count})
        wait_for(lambda count=count: len(hosts(process.pid, "RewardActor")) == count, process)
    at = steps(run)
    folder.request({"learner": 2})
    wait_for(lambda: len(hosts(process.pid, "Learner")) == 2 and steps(run) > at + 1, process)
    process.send_signal(signal.SIGINT)
    finish(process)
    assert [r["step"] for r in folder.records()] == list(range(1, steps(run) + 1))
    sound(run)


@pytest.mark.slow
def test_autoscaler_adds_a_generator_while_the_learner_waits(tmp_path, tiny_model):
    """One generator draws one branch at a time, which is too slow for the learner."""
    process = start("--config", recipe(
        tmp_path, tiny_model, run__steps=10**6, generator__count=1, generator__forests=1, generator__rows=1,
        scaling__enabled=True, scaling__max=2, scaling__interval=0.5, scaling__min_duration=1.0, scaling__cooldown=1.0,
    ))  # fmt: skip
    run = tmp_path / "run"
    wait_for(lambda: steps(run) >= 1, process)
    wait_for(lambda: len(hosts(process.pid, "Generator")) == 2, process)
    at = steps(run)
    wait_for(lambda: steps(run) > at + 1, process)
    process.send_signal(signal.SIGINT)
    finish(process)
    sound(run)
