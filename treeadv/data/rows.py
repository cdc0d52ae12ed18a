"""Reads rows of .jsonl files, .parquet files and Hugging Face data sets, and computes hashes of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from treeadv.errors import BadInput, one_line
from treeadv.jsonl import JsonObject, read_jsonl
from treeadv.task_config import ENDLESS


@dataclass(frozen=True, slots=True, kw_only=True)
class DataRow:
    """One row of data. `place` names the row in errors. `id` is the default id of the row."""

    value: object
    place: str
    id: str


def read_rows(source: str) -> list[DataRow]:
    """Return all rows of a file or of a Hugging Face data set hf:NAME, in order. Raises `BadInput`."""
    if source.startswith("hf:"):
        name = _hub_name(source)
        return [DataRow(value=r, place=f"{source} row {n}", id=f"{name}-{n}") for n, r in enumerate(_hub(source), 1)]
    path = Path(source)
    return [DataRow(value=value, place=f"{path}:{n}", id=f"{path.stem}-{n}") for n, value in _reader(path)(path)]


def content_hash(source: str) -> str:
    """Return the hexadecimal SHA-256 of the bytes of a file, or of the rows of a Hugging Face data set."""
    if source.startswith("hf:"):
        digest = hashlib.sha256()
        for row in _hub(source):
            digest.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
        return digest.hexdigest()
    path = Path(source)
    _reader(path)  # raises for a missing file or an unknown suffix
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _reader(path: Path) -> Any:
    readers = {".jsonl": _jsonl_rows, ".parquet": _parquet_rows}
    if path.suffix not in readers:
        raise BadInput(
            f"{path}: problems are read from .jsonl or .parquet files, hf:NAME[[:CONFIGURATION]:SPLIT],"
            f" {' or '.join(ENDLESS)}"
        )
    if not path.is_file():
        raise BadInput(f"{path}: no such file of problems")
    return readers[path.suffix]


def _jsonl_rows(path: Path) -> Iterator[tuple[int, object]]:
    return read_jsonl(path, "an object with problem and answer")


def _parquet_rows(path: Path) -> Iterator[tuple[int, object]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as e:
        raise BadInput(f"{path}: not a Parquet file ({one_line(e)})") from e
    number = 0
    for batch in table.to_batches():
        try:
            rows = batch.to_pylist()
        except (pa.ArrowException, ValueError, OverflowError) as e:  # the text is not UTF-8, or a date is out of range
            raise BadInput(f"{path}: rows {number + 1} to {number + batch.num_rows}: {one_line(e)}") from e
        for row in rows:
            number += 1
            yield number, row


def _hub_name(source: str) -> str:
    return source.removeprefix("hf:").split(":")[0]


def _hub(source: str) -> Iterable[JsonObject]:
    """Load a Hugging Face data set: hf:NAME, hf:NAME:SPLIT or hf:NAME:CONFIGURATION:SPLIT."""
    name, *rest = source.removeprefix("hf:").split(":")
    split = rest.pop() if rest else "train"
    if len(rest) > 1:
        raise BadInput(f"task.source={source}: write hf:NAME, hf:NAME:SPLIT or hf:NAME:CONFIGURATION:SPLIT")
    try:
        import datasets
    except ImportError as e:
        raise BadInput(
            f"task.source={source}: datasets is not installed (pip install datasets); or give a .jsonl file"
        ) from e
    try:
        rows: Iterable[JsonObject] = datasets.load_dataset(name, *rest, split=split or "train")
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as e:  # no such data set, or no network
        raise BadInput(f"task.source={source}: {one_line(e)}") from e
    return rows
