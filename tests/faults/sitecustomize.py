"""Kills a process at a chosen line of a run. Every Python process of a run that a test starts with this folder on
PYTHONPATH (driver, Ray workers, verifier processes) imports it; nothing in the product knows of it.

A test writes `armed.json` into the folder TREEADV_VERIFIER_FAULTS (verifier processes inherit what is so named): {"at":
a point, "victim": "" for the process that comes by, or a role}. Whoever comes to that point next renames the file to
`fired.json`, which only one can do, and sends SIGKILL; the victim "fails" raises an exception there instead. With
"always" it strikes all who come by.
"""

import asyncio
import functools
import importlib
import json
import os
import signal
import sys
from pathlib import Path

FOLDER = Path(os.environ["TREEADV_VERIFIER_FAULTS"])
POINTS = (  # what a process is doing when it comes there
    "treeadv.engines.embedded:EmbeddedEngine._step",  # drawing tokens
    "treeadv.engines.embedded:EmbeddedEngine._load",  # taking new weights
    "actors.generator:Generator._count",  # a forest is grown, and not yet handed over
    "tests.vowel:has_vowel",  # judging an answer
    # A verifier process is writing a verdict (it runs as __main__, whose own functions cannot be reached from here)
    "json:dumps",
    "treeadv.rewards.grading:grade_forest",  # having a forest judged
    "actors.reward:RewardActor._graded",  # a forest is judged, and not yet handed over
    "treeadv.replay.store:ReplayStore.lease",  # choosing forests for a step
    "treeadv.storage.local:LocalFile.write",  # writing a payload or a record
    "treeadv.learning.trainer:Trainer._apply",  # gradients are there, the optimizer has not stepped
    "treeadv.learning.checkpoint:_publish",  # a checkpoint is written, and not yet under its name
    "actors.learner:Learner.step",  # a learner has references to forests, and has not read them
    "actors.learner:Learner.publish",  # the weights are handed over
    "treeadv.storage.run_folder:RunFolder.record",  # writing the record of a step
)


def armed(point: str) -> str | None:
    """The victim, if it is this point's turn: told to one caller only."""
    try:
        fault = json.loads((FOLDER / "armed.json").read_text())
        if fault["at"] != point:
            return None
        if not fault.get("always"):
            (FOLDER / "armed.json").rename(FOLDER / "fired.json")
    except FileNotFoundError:
        return None
    return fault["victim"]


def strike(victim: str) -> None:
    from tests.running import driver_of, hosts

    if victim == "fails":
        raise RuntimeError("injected")
    driver = driver_of(os.getpid())
    pid = os.getpid() if not victim else driver if victim == "driver" else hosts(driver, victim)[0].pid
    os.kill(pid, signal.SIGKILL)


def tear(point: str, args: tuple) -> None:
    """Do half of the write that was asked for."""
    if point.endswith("LocalFile.write"):
        part, data = args
        os.write(part._fd, memoryview(data)[: len(data) // 2])
    elif point == "json:dumps":
        replies = sys._getframe(2).f_locals["replies"]
        replies.write(b'{"verdict": 1, "rew')
        replies.flush()
    elif point.endswith("RunFolder.record"):
        with (args[0].path / "metrics.jsonl").open("a") as f:
            f.write(json.dumps(args[1])[:40])


def instrument(point: str) -> None:
    module, _, path = point.partition(":")
    *above, name = path.split(".")
    owner = functools.reduce(getattr, above, importlib.import_module(module))
    original = getattr(owner, name)
    handing_over = point.endswith(("publish", "_graded")) and not point.endswith(":_publish")

    @functools.wraps(original)
    def plain(*args, **kwargs):
        if handing_over:
            done = original(*args, **kwargs)
        at_a_verdict = point != "json:dumps" or (isinstance(args[0], dict) and "verdict" in args[0])
        if at_a_verdict and (victim := armed(point)) is not None:
            tear(point, args)
            strike(victim)
        return done if handing_over else original(*args, **kwargs)

    @functools.wraps(original)
    async def awaited(*args, **kwargs):
        done = await original(*args, **kwargs)
        if (victim := armed(point)) is not None:
            strike(victim)
        return done

    setattr(owner, name, awaited if handing_over and asyncio.iscoroutinefunction(original) else plain)


def watch() -> None:
    import wrapt

    for point in POINTS:
        if point == "json:dumps" and "treeadv.rewards.sandbox.worker" not in sys.orig_argv:
            continue
        wrapt.register_post_import_hook(lambda _, point=point: instrument(point), point.partition(":")[0])


watch()
