"""Injects a fault at a chosen line of a run. A test starts a run with this folder on PYTHONPATH, so every Python
process of the run (driver, Ray workers, verifier processes) imports this file. The product has no code for faults.

A test writes `armed.json` into the folder TREEADV_VERIFIER_FAULTS. The variable has this name because verifier
processes inherit variables with the prefix TREEADV_VERIFIER_. The file has the form {"at": a point, "victim": a role};
the victim "" is the process that reaches the point. The first process that reaches the point renames the file to
`fired.json` and sends SIGKILL to the victim.

Three victims have another meaning. With "fails", the process raises an exception at the point. With "stops", it sends
SIGSTOP to itself. With "hoards", it allocates memory up to "limit" bytes, until Ray's memory monitor kills it.

With "always", the fault applies to every process that reaches the point.
"""

import asyncio
import functools
import importlib
import json
import os
import signal
import sys
import time
from pathlib import Path

FOLDER = Path(os.environ["TREEADV_VERIFIER_FAULTS"])
POINTS = (  # point in the code -> activity of the process at this point
    *("actors.generator:Generator.__init__", "actors.reward:RewardActor.__init__"),  # a process becomes an actor
    *("actors.replay_queue:ReplayQueue.__init__", "actors.learner:Learner.__init__"),
    "treeadv.engines.embedded:EmbeddedEngine._step",  # the engine draws tokens
    "treeadv.engines.embedded:EmbeddedEngine._load",  # the engine loads new weights
    "actors.generator:Generator._count",  # a forest is grown and not yet returned
    "actors.generator:Generator._answers",  # the generator is about to answer a held-out problem
    "tests.parity:has_even_sum",  # a verifier process judges an answer
    # A verifier process writes a verdict. It runs as __main__, whose own functions cannot be patched here.
    "json:dumps",
    "treeadv.rewards.grading:grade_forest",  # the reward actor judges a forest
    "actors.reward:RewardActor._graded",  # a forest is judged and not yet returned
    "treeadv.replay.store:ReplayStore.lease",  # the queue chooses forests for a step
    "treeadv.storage.local:LocalFile.write",  # the queue writes a payload or a record
    "treeadv.learning.trainer:learning_rate",  # the gradients are computed, and the optimizer step is not taken yet
    "treeadv.learning.trainer:Trainer.write_files",  # a learner is about to write a checkpoint
    "actors.learner:Learner.step",  # a learner has references to forests and has not read them
    "actors.learner:Learner.publish",  # the weights are published
    "treeadv.storage.run_store:LocalRunStore.seal",  # a checkpoint is written and not yet sealed
    "treeadv.storage.run_folder:RunFolder.record",  # the driver writes the record of a step
)


def armed(point: str) -> dict | None:
    """Return the fault that is armed at this point, or None. Only one caller gets the fault."""
    try:
        fault = json.loads((FOLDER / "armed.json").read_text())
        if fault["at"] != point:
            return None
        if not fault.get("always"):
            (FOLDER / "armed.json").rename(FOLDER / "fired.json")
    except FileNotFoundError:
        return None
    return fault


def strike(fault: dict) -> None:
    from tests.running import driver_of, hosts

    victim = fault["victim"]
    if victim == "fails":
        raise RuntimeError("injected")
    if victim == "hoards":
        hoard(fault.get("limit", 6 << 30))
    if victim == "stops":
        os.kill(os.getpid(), signal.SIGSTOP)
        return
    driver = driver_of(os.getpid())
    pid = os.getpid() if not victim else driver if victim == "driver" else hosts(driver, victim)[0].pid
    os.kill(pid, signal.SIGKILL)


def hoard(limit: int) -> None:
    """Fill memory up to `limit` bytes, and wait until Ray kills this process."""
    blocks = []
    while sum(map(len, blocks)) < limit:
        blocks.append(b"x" * (128 << 20))
    time.sleep(60)
    raise AssertionError("the memory monitor did not kill this process")


def tear(point: str, args: tuple) -> None:
    """Write only the first half of the data."""
    if point.endswith("LocalFile.write"):
        file, data = args
        os.write(file._handle, memoryview(data)[: len(data) // 2])
    elif point == "json:dumps":
        stream = sys._getframe(3).f_locals["stream"]  # write_frame calls frame, which calls json.dumps
        stream.write(b'treeadv 0123 99\n{"grade": {"ver')
        stream.flush()
    elif point.endswith("RunFolder.record"):
        with (args[0].path / "metrics.jsonl").open("a") as f:
            f.write(json.dumps(args[1])[:40])


def instrument(point: str) -> None:
    module, _, path = point.partition(":")
    *above, name = path.split(".")
    owner = functools.reduce(getattr, above, importlib.import_module(module))
    original = getattr(owner, name)
    handing_over = point.endswith(("publish", "_graded"))

    @functools.wraps(original)
    def plain(*args, **kwargs):
        if handing_over:
            done = original(*args, **kwargs)
        at_a_verdict = point != "json:dumps" or (isinstance(args[0], dict) and "grade" in args[0])
        if at_a_verdict and (fault := armed(point)) is not None:
            tear(point, args)
            strike(fault)
        return done if handing_over else original(*args, **kwargs)

    @functools.wraps(original)
    async def awaited(*args, **kwargs):
        done = await original(*args, **kwargs)
        if (fault := armed(point)) is not None:
            strike(fault)
        return done

    setattr(owner, name, awaited if handing_over and asyncio.iscoroutinefunction(original) else plain)


def watch() -> None:
    import wrapt

    for point in POINTS:
        if point == "json:dumps" and "treeadv.rewards.sandbox.worker" not in sys.orig_argv:
            continue
        wrapt.register_post_import_hook(lambda _, point=point: instrument(point), point.partition(":")[0])


watch()
