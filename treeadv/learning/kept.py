"""The files with the learner's log-probabilities of the trained tokens of a run (`learner.keep_log_probs`).

`log_probs/step-N.rank-R.arrow` has a row for each forest of the step that rank R packed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from treeadv import wire
from treeadv.disk import replacing
from treeadv.errors import BadInput, one_line
from treeadv.forest import Floats
from treeadv.messages import read_messages

FOLDER = "log_probs"
_SCHEMA = pa.schema(
    [
        pa.field("forest_id", pa.string(), nullable=False),
        pa.field("log_prob", pa.list_(pa.field("item", pa.float32(), nullable=False)), nullable=False),
    ]
)


def write_log_probs(run: Path, step: int, rank: int, kept: Mapping[str, Floats]) -> None:
    """Write log pi [T] of forests by id, with NaN for a token that was not trained.

    Replaces a file of an earlier attempt.
    """
    (run / FOLDER).mkdir(exist_ok=True)
    columns = [pa.array(list(kept), pa.string()), pa.array(list(kept.values()), _SCHEMA.field("log_prob").type)]
    with (
        replacing(run / FOLDER / f"step-{step}.rank-{rank}.arrow") as scratch,
        pa.OSFile(str(scratch), "wb") as sink,
        pa.ipc.new_file(sink, _SCHEMA) as writer,
    ):
        writer.write_batch(pa.record_batch(columns, schema=_SCHEMA))


def read_log_probs(run: Path, step: int, forest_id: str) -> Floats | None:
    """Return log pi [T] of a forest as `write_log_probs` wrote it, or None if the step did not write it.

    Raises `BadInput` for a damaged file."""
    for path in sorted((run / FOLDER).glob(f"step-{step}.rank-*.arrow")):
        try:
            data = pa.memory_map(str(path), "r").read_buffer()
        except (OSError, ValueError) as e:
            raise BadInput(f"{path}: cannot be read ({one_line(e)}); restore or delete the file") from e
        schema, batches = read_messages(data, str(path))
        if not schema.equals(_SCHEMA):
            raise BadInput(f"{path}: not a file of log-probabilities; restore or delete the file")
        for batch in batches:
            for name, values in zip(batch.column(0).to_pylist(), batch.column(1), strict=True):
                if name == forest_id:
                    return np.asarray(wire.numbers(values.values), np.float32)
    return None
