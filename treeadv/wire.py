"""The Arrow schema of a forest, and the conversion to and from Arrow without copies. One row holds one forest."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow as pa

from treeadv.errors import BadForest, BadInput, one_line
from treeadv.forest import Forest
from treeadv.forest.faults import all_sound
from treeadv.messages import read_messages

SCHEMA_VERSION = 1
_VERSION_KEY = b"treeadv.schema_version"
_VERSION_DIGITS = 9


def _list(kind: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("item", kind, nullable=False))


_I32, _F32, _I8 = _list(pa.int32()), _list(pa.float32()), _list(pa.int8())
_TYPES: dict[str, pa.DataType] = {
    "forest_id": pa.string(),
    "prompt_id": pa.string(),
    "gold": pa.string(),
    "verifier": pa.string(),
    "meta": pa.string(),
    "rule": pa.string(),
    "predictable": pa.bool_(),
    "tau": pa.float64(),
    "temperature": pa.float64(),
    "prompt": _I32,
    "parent": _I32,
    "start": _I32,
    "tree": _I32,
    "arity": _I32,
    "budget": _I32,
    "token": _I32,
    "logprob": _F32,
    "entropy": _F32,
    "version": _I32,
    "leaf_segment": _I32,
    "finish": _I8,
    "reward": _F32,
    "verdict": _I8,
    "detail": _list(pa.string()),
}
_NUMPY = {_I32: np.int32, _F32: np.float32, _I8: np.int8}
assert list(_TYPES) == [f.name for f in fields(Forest)]

SCHEMA = pa.schema(
    [pa.field(n, t, nullable=False) for n, t in _TYPES.items()], metadata={_VERSION_KEY: str(SCHEMA_VERSION)}
)


def to_batch(forests: Sequence[Forest], checked: bool = False) -> pa.RecordBatch:
    """Return a record batch with one row for each forest. Raises `BadForest` for a forest that breaks an invariant.

    With `checked` the caller has just checked the forests, which takes most of the time of this function."""
    for f in () if checked or all_sound(forests) else forests:
        f.check()
    return pa.record_batch([_column(n, t, forests) for n, t in _TYPES.items()], schema=SCHEMA)


def _column(name: str, kind: pa.DataType, forests: Sequence[Forest]) -> pa.Array:
    values = [getattr(f, name) for f in forests]
    if kind not in _NUMPY:
        return pa.array(values, type=kind)
    offsets = np.cumsum([0, *map(len, values)], dtype=np.int32)
    flat = np.concatenate(values).astype(_NUMPY[kind], copy=False)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat), type=kind)


def from_batch(batch: pa.RecordBatch) -> list[Forest]:
    """Return forests whose arrays are read-only views of the batch's buffers. The batch must have this version of
    the schema."""
    check_schema(batch.schema, "record batch")
    views = [_views(batch.column(n), t) for n, t in _TYPES.items()]
    return [Forest(**dict(zip(_TYPES, row, strict=True))) for row in zip(*views, strict=True)]


def rows(batches: Sequence[pa.RecordBatch], places: Sequence[tuple[int, int]]) -> list[Forest]:
    """Return forests by (number of the batch, row in the batch), in the order of `places`."""
    forests = [from_batch(batch) for batch in batches]
    return [forests[batch][row] for batch, row in places]


def _views(column: pa.Array, kind: pa.DataType) -> Iterable:
    if kind not in _NUMPY:
        rows = column.to_pylist()
        return map(tuple, rows) if pa.types.is_list(kind) else rows
    values, offsets = numbers(column.values), numbers(column.offsets)
    return [values[a:b] for a, b in itertools.pairwise(offsets)]


def numbers(array: pa.Array) -> np.ndarray:
    """Return the numbers of an array without missing values, as a read-only view.

    `pa.Array.to_numpy` does the same, but it first imports pandas where pandas is installed, which takes 0.3 s."""
    return np.from_dlpack(array)


def check_schema(schema: pa.Schema, where: str) -> None:
    """Raise `BadInput` for a schema that this release cannot read. The message names the schema and the remedy."""
    found = (schema.metadata or {}).get(_VERSION_KEY)
    if found is None or not found.isdigit() or len(found) > _VERSION_DIGITS:
        raise BadInput(
            f"{where} is not a file of forests (no {_VERSION_KEY.decode()} in its schema); give a file of forests"
        )
    if int(found) > SCHEMA_VERSION:
        raise BadInput(
            f"{where}: forest schema {int(found)} is newer than this release reads ({SCHEMA_VERSION}): upgrade treeadv"
        )
    if not schema.equals(SCHEMA, check_metadata=False):
        raise BadInput(f"{where}: the columns differ from forest schema {SCHEMA_VERSION}; give a file of treeadv")


def write_file(path: Path, forests: Sequence[Forest], model: str = "") -> None:
    """Write forests to an Arrow IPC file of one batch.

    The metadata stores `model`. `treeadv show` uses it to find the tokenizer.

    >>> tree = Forest.assemble(prompt=[1], parent=[-1, -1], lengths=[2, 1], token=[5, 6, 7], logprob=[-1.0, -0.5, -2.0])
    >>> write_forests(Path("forests.arrow"), [tree])
    >>> read_forests(Path("forests.arrow"))[0][0].token.tolist()
    [5, 6, 7]
    """
    schema = SCHEMA.with_metadata({**SCHEMA.metadata, b"treeadv.model": model.encode()})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(to_batch(forests).replace_schema_metadata(schema.metadata))


def read_file(path: Path) -> tuple[list[Forest], str]:
    """Read a memory-mapped Arrow IPC file in file or stream format. Returns its forests and the model in its metadata.

    The model is "" if the metadata holds no model. Every forest is checked. Raises `BadInput` for another kind of file.

    >>> tree = Forest.assemble(prompt=[1], parent=[-1], lengths=[2], token=[5, 6], logprob=[-1.0, -0.5])
    >>> write_forests(Path("forests.arrow"), [tree], "models/tiny")
    >>> forests, model_name = read_forests(Path("forests.arrow"))
    >>> len(forests), model_name
    (1, 'models/tiny')
    """
    if path.is_dir():
        example = next(path.rglob("*.arrow"), path / "FOREST.arrow")
        raise BadInput(f"{path} is a folder; give a file of forests, such as {example}")
    if not path.is_file():
        raise BadInput(f"{path}: no such file; give a file of forests")
    try:
        data = pa.memory_map(str(path), "r").read_buffer()
    except (OSError, ValueError) as e:
        raise BadInput(f"{path}: cannot be read ({one_line(e)})") from e
    schema, batches = read_messages(data, str(path))
    check_schema(schema, str(path))
    model = (schema.metadata or {}).get(b"treeadv.model", b"").decode(errors="replace")
    try:
        return [f.check() for b in batches for f in from_batch(b)], model
    except BadForest as e:
        raise BadInput(f"{path}: {e}") from e
