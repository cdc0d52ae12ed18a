"""A reader of Arrow IPC messages from other writers. It checks sizes before it decompresses, and content before it
returns it.

Arrow verifies the flatbuffer of a message. But Arrow trusts the size that a compressed buffer declares, and it
checks no offset inside an array. The Arrow columnar format defines the layout of a message in the section
"Serialization and Interprocess Communication"."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from treeadv.errors import BadInput, one_line

MAX_EXPANDED = 1 << 26  # number of bytes to which a compressed message of any size may expand
MAX_RATIO = 16  # above that size, largest number of expanded bytes for each stored byte
_MAGIC = b"ARROW1"
_HEADER, _BUFFERS, _COMPRESSION = 2, 2, 3  # field numbers in the tables Message and RecordBatch of Arrow's Message.fbs
_NOT_COMPRESSED = -1
UNREADABLE = (pa.ArrowException, OSError, EOFError, struct.error)


def read_messages(data: pa.Buffer, where: str) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Return the schema of an Arrow IPC file or stream and its record batches. Batches without compression are views of
    `data`.

    Raises `BadInput` with `where` for any other content, for dictionaries, and for a message that `read_batch`
    refuses."""
    start = bytes(memoryview(data)[: len(_MAGIC)]) == _MAGIC  # a file may be shorter
    if start:  # a file is a stream between two marks
        if data.size < 20 or data.slice(data.size - len(_MAGIC)).to_pybytes() != _MAGIC:
            raise BadInput(f"{where}: not an Arrow file of forests (its end is missing)")
        data = data.slice(8)
    try:
        reader = pa.ipc.MessageReader.open_stream(pa.BufferReader(data))
        schema = read_schema(reader.read_next_message(), where)
    except (*UNREADABLE, StopIteration) as e:
        raise BadInput(f"{where}: not an Arrow file of forests ({one_line(e)})") from e
    return schema, _batches(reader, schema, where)


def read_schema(message: pa.ipc.Message, where: str) -> pa.Schema:
    """Return the schema in a message.

    Raises `BadInput` with `where` for a message of another type. Arrow would read such a message as a schema and
    then crash."""
    if message.type != "schema":
        raise BadInput(f"{where}: not an Arrow file of forests (it begins with a message of type {message.type})")
    return pa.ipc.read_schema(message)


def _batches(reader: pa.ipc.MessageReader, schema: pa.Schema, where: str) -> Iterator[pa.RecordBatch]:
    number = 0
    while True:
        try:
            message = reader.read_next_message()
        except StopIteration:
            return
        except UNREADABLE as e:
            raise BadInput(f"{where}: message {number} cannot be read ({one_line(e)})") from e
        yield read_batch(message, schema, f"{where}: message {number}")
        number += 1


def read_batch(message: pa.ipc.Message | pa.Buffer, schema: pa.Schema, where: str) -> pa.RecordBatch:
    """Return the record batch of one message after a check of every offset, text and length.

    Raises `BadInput` with `where` if the message is not a record batch of `schema`, has overlapping buffers or a
    missing value, or expands too far (`MAX_EXPANDED`, `MAX_RATIO`)."""
    try:
        if isinstance(message, pa.Buffer):
            message = pa.ipc.read_message(message)
        if message.type != "record batch":
            raise BadInput(f"{where} is a {message.type} and not a record batch")
        _check_sizes(message.metadata, message.body, where)
        batch = pa.ipc.read_record_batch(message, schema)
        batch.validate(full=True)
    except UNREADABLE as e:
        raise BadInput(f"{where} is damaged ({one_line(e)})") from e
    for name, column in zip(schema.names, batch.columns, strict=True):
        if column.null_count or (pa.types.is_list(column.type) and column.values.null_count):
            raise BadInput(f"{where}: column {name} has a missing value")
    return batch


def _check_sizes(metadata: pa.Buffer, body: pa.Buffer, where: str) -> None:
    """Check the sizes of the buffers of a record batch, stored and expanded, against the size of the message's body."""
    meta = memoryview(metadata)
    table = _table(meta, _field(meta, _table(meta, 0), _HEADER))
    spans = _spans(meta, _field(meta, table, _BUFFERS))
    if (spans < 0).any() or (spans[:, 0] > body.size - spans[:, 1]).any() or spans[:, 1].sum() > body.size:
        raise BadInput(f"{where} is damaged (its buffers overlap or lie outside of its {body.size} bytes)")
    if not _field(meta, table, _COMPRESSION):
        return
    declared = [_int64(memoryview(body), offset) for offset, length in spans.tolist() if length]
    stored = zip(declared, spans[spans[:, 1] > 0, 1].tolist(), strict=True)
    expanded = sum(length if size == _NOT_COMPRESSED else size for size, length in stored)
    if min(declared, default=0) < _NOT_COMPRESSED or expanded > max(MAX_EXPANDED, MAX_RATIO * body.size):
        raise BadInput(
            f"{where}: {body.size} compressed bytes would expand to {expanded}; write it without compression"
        )


def _spans(meta: memoryview, at: int) -> np.ndarray:
    """Return the offset and the length of each buffer, as an array [n, 2]."""
    if not at:
        return np.zeros((0, 2), np.int64)
    vector = _table(meta, at)
    count = struct.unpack_from("<I", meta, vector)[0]
    if count > len(meta) // 16:
        raise struct.error(f"{count} buffers are declared in {len(meta)} bytes")
    return np.frombuffer(meta, "<i8", 2 * count, vector + 4).reshape(count, 2)


def _table(meta: memoryview, at: int) -> int:
    """Return the position that the flatbuffer offset at `at` points to."""
    return at + struct.unpack_from("<I", meta, at)[0]


def _field(meta: memoryview, table: int, number: int) -> int:
    """Return the position of a field of a flatbuffer table; 0 if the table does not have the field."""
    vtable = table - struct.unpack_from("<i", meta, table)[0]
    if 4 + 2 * number >= struct.unpack_from("<H", meta, vtable)[0]:
        return 0
    offset = struct.unpack_from("<H", meta, vtable + 4 + 2 * number)[0]
    return table + offset if offset else 0


def _int64(data: memoryview, at: int) -> int:
    return struct.unpack_from("<q", data, at)[0]
