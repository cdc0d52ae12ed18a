"""Runs a queue and a learner in one process, which a test kills. The process grows, trains and checkpoints without
pauses, and prints one line for each action. The checkpoint file represents the model: it lists the forests of every
trained step.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from tests.replay.helpers import batch_for
from treeadv.config import QueueConfig
from treeadv.replay.store import ReplayStore

PER_STEP = 3


def main(folder: Path, fsync: str, steps: int) -> None:
    checkpoint = folder / "checkpoint.json"
    model: list[list[str]] = json.loads(checkpoint.read_text()) if checkpoint.exists() else []
    queue = QueueConfig(fsync=fsync, payload_mb=1, retain="all")
    store = ReplayStore(
        str(folder), queue, forests_per_step=PER_STEP, seed=0, session=f"life of {os.getpid()}", step=len(model)
    )
    print("open", flush=True)
    while len(model) < steps:
        while (record := store.reserve("w", "", str)) is not None:
            store.admit(record.forest_id, batch_for(record, version=len(model), length=2000))
            if fsync == "always":
                store.sync()
        lease = store.lease(PER_STEP, len(model))
        assert lease is not None
        model.append(list(lease.forest_ids))
        store.ack(lease.lease_id, len(model))
        store.sync()
        print("acked", len(model), flush=True)
        if len(model) % 4 == 0 or len(model) == steps:
            new = folder / "checkpoint.new"
            new.write_text(json.dumps(model))
            os.replace(new, checkpoint)
            store.commit(len(model))
    store.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
