"""Reads rows of .jsonl, .parquet and .csv files and of Hugging Face data sets, and computes hashes of them."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from treeadv.errors import BadInput, one_line
from treeadv.jsonl import JsonObject, check_file, check_form, read_jsonl
from treeadv.places import check_local
from treeadv.task_config import ENDLESS

# What to do with a file of another suffix.
_REMEDIES = {
    ".gz": "; decompress it: gzip -dc {file} > {name}",
    ".bz2": "; decompress it: bzip2 -dc {file} > {name}",
    ".xz": "; decompress it: xz -dc {file} > {name}",
    ".zst": "; decompress it: zstd -dc {file} > {name}",
    ".json": "; name it .jsonl if each line is an object, or convert an array: jq -c '.[]' {file} > {name}.jsonl",
    ".tsv": "; convert it to a .csv file",
}


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
    reader = _reader(source)
    return [DataRow(value=value, place=f"{path}{place}", id=f"{path.stem}-{n}") for n, place, value in reader(path)]


def content_hash(source: str) -> str:
    """Return the hexadecimal SHA-256 of the bytes of a file, or of the rows of a Hugging Face data set."""
    if source.startswith("hf:"):
        digest = hashlib.sha256()
        for row in _hub(source):
            digest.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
        return digest.hexdigest()
    _reader(source)  # raises for a missing file or an unknown suffix
    try:
        with Path(source).open("rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest()
    except OSError as e:
        raise BadInput(f"{source}: cannot be read ({e.strerror})") from e


def _reader(source: str) -> Callable[[Path], Iterator[tuple[int, str, object]]]:
    check_local(source, "task.source")
    path = Path(source)
    suffix = path.suffix.lower()
    if suffix not in READERS:
        remedy = _REMEDIES.get(suffix, "").format(file=shlex.quote(source), name=shlex.quote(path.stem))
        raise BadInput(
            f"{path}: problems are read from {', '.join(READERS)} files, hf:NAME[[:CONFIGURATION]:SPLIT],"
            f" {' or '.join(ENDLESS)}{remedy}"
        )
    check_file(path, "problems")
    return READERS[suffix]


def _jsonl_rows(path: Path) -> Iterator[tuple[int, str, object]]:
    for n, value in read_jsonl(path, "an object with problem and answer"):
        yield n, f":{n}", value


def _parquet_rows(path: Path) -> Iterator[tuple[int, str, object]]:
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            _check_names(path, file.schema_arrow)
            table = file.read()
    except (pa.ArrowException, OSError) as e:
        _check_form(path)
        raise BadInput(f"{path}: cannot be read as Parquet ({one_line(e)}); write the file again") from e
    return _table_rows(path, table)


def _csv_rows(path: Path) -> Iterator[tuple[int, str, object]]:
    """Read all columns as text, so that a gold answer 007 or 1.50 stays as it is written."""
    from pyarrow import csv

    options: Any = {
        "read_options": csv.ReadOptions(block_size=path.stat().st_size + 1),  # in one block, which any row fits
        "parse_options": csv.ParseOptions(newlines_in_values=True),
    }
    try:
        with csv.open_csv(path, **options) as file:
            schema = file.schema
        _check_names(path, schema)
        texts = csv.ConvertOptions(column_types={name: pa.string() for name in schema.names})
        table = csv.read_csv(path, **options, convert_options=texts)
    except (pa.ArrowException, OSError) as e:
        _check_form(path)
        raise BadInput(f"{path}: cannot be read as CSV ({one_line(e)}); write UTF-8 text with commas") from e
    return _table_rows(path, table)


def _check_form(path: Path) -> None:
    """Raise `BadInput` with the remedy if a file that cannot be read has another form than its name says."""
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as e:
        raise BadInput(f"{path}: cannot be read ({e.strerror})") from e
    if not (path.suffix.lower() == ".parquet" and start.startswith(b"PAR1")):
        check_form(path, start)


def _table_rows(path: Path, table: pa.Table) -> Iterator[tuple[int, str, object]]:
    number = 0
    for batch in table.to_batches():
        try:
            rows = batch.to_pylist()
        except (pa.ArrowException, ValueError, OverflowError) as e:  # the text is not UTF-8, or a date is out of range
            raise BadInput(f"{path}: rows {number + 1} to {number + batch.num_rows}: {one_line(e)}") from e
        for row in rows:
            number += 1
            yield number, f" row {number}", row


def _check_names(path: Path, fields: Iterable[pa.Field], inside: str = "") -> None:
    """Raise `BadInput` if two columns, or two fields of a column, have the same name."""
    listed = list(fields)
    names = [field.name for field in listed]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise BadInput(
            f"{path}: {names.count(twice[0])} {'fields' if inside else 'columns'} have the name"
            f" {inside}{twice[0]}; rename or remove one"
        )
    for field in listed:
        kind = field.type
        while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
            kind = kind.value_type
        if pa.types.is_struct(kind):
            _check_names(path, kind, f"{inside}{field.name}.")


READERS = {".jsonl": _jsonl_rows, ".parquet": _parquet_rows, ".csv": _csv_rows}


def _hub_name(source: str) -> str:
    return source.removeprefix("hf:").split(":")[0]


def _hub(source: str) -> Iterable[JsonObject]:
    """Yield the rows of a Hugging Face data set: hf:NAME, hf:NAME:SPLIT or hf:NAME:CONFIGURATION:SPLIT."""
    name, *rest = source.removeprefix("hf:").split(":")
    split = rest.pop() if rest else "train"
    if len(rest) > 1 or not name:
        raise BadInput(f"task.source={source}: write hf:NAME, hf:NAME:SPLIT or hf:NAME:CONFIGURATION:SPLIT")
    try:
        import datasets
    except ImportError as e:
        raise BadInput(
            f"task.source={source}: datasets is not installed (pip install datasets); or give a .jsonl file"
        ) from e
    try:
        yield from datasets.load_dataset(name, *rest, split=split or "train")
    except Exception as e:  # no such data set, no network, or a row that a decoder of its type refuses
        raise BadInput(f"task.source={source}: {one_line(e)}") from e
