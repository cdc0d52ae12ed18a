"""Tests files of forests and run folders of any origin. They must be read, or refused in one line, in bounded
memory."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.strategies import build
from treeadv import wire
from treeadv.cli.main import main
from treeadv.errors import BadInput
from treeadv.forest import Forest

SMALL = build([-1, 0, 0], [2, 3, 1])


def comb(segments: int) -> Forest:
    """Return a forest in which each fork has two children: a leaf and the next fork."""
    parent = [-1]
    for fork in range(0, segments - 1, 2):
        parent += [fork, fork]
    return build(parent, [2] * len(parent))


def write(path: Path, batch: pa.RecordBatch, compression: str | None = None) -> Path:
    with pa.ipc.new_stream(str(path), batch.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_batch(batch)
    return path


@pytest.mark.parametrize("count", [120, pytest.param(8000, marks=pytest.mark.slow)])
def test_mutated_files_are_read_or_refused_in_one_line(tmp_path: Path, count: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.mutations", "7", str(count), str(tmp_path)], capture_output=True, text=True
    )
    last = done.stdout.splitlines()[-1]
    assert done.returncode == 0, f"exit code {done.returncode} at {last}: {done.stderr}"
    result = json.loads(last)
    assert result["faults"] == []
    assert result["refused"] > count // 3 and result["read"] > count // 10


def test_compressed_bomb_is_refused_before_it_expands(tmp_path: Path) -> None:
    zeros = np.zeros(1 << 26, np.int32)
    bomb = replace(SMALL, prompt=zeros)
    path = write(tmp_path / "bomb.arrow", wire.to_batch([bomb]), "zstd")
    assert path.stat().st_size < 40_000
    before = pa.total_allocated_bytes()
    with pytest.raises(BadInput, match=r"message 0: \d+ compressed bytes would expand to 268\d+; write it without"):
        wire.read_file(path)
    assert pa.total_allocated_bytes() - before < 1 << 20


def test_compressed_file_of_usual_size_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "f.arrow", wire.to_batch([build([-1, 0, 0], [3000, 3000, 3000])]), "lz4")
    assert wire.read_file(path)[0][0].tokens == 9000


def test_offsets_outside_of_their_array_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "f.arrow", wire.to_batch([SMALL]))
    data = path.read_bytes()
    assert struct.pack("<ii", 0, SMALL.tokens) in data  # the offsets of the tokens
    path.write_bytes(data.replace(struct.pack("<ii", 0, SMALL.tokens), struct.pack("<ii", 0, 1 << 20)))
    with pytest.raises(BadInput, match=r"message 0 is damaged \(.*too small"):
        wire.read_file(path)


@pytest.mark.parametrize(("name", "value"), [("gold", None), ("detail", ["a", None])])
def test_missing_value_is_refused(tmp_path: Path, name: str, value: object) -> None:
    batch = wire.to_batch([SMALL])
    at = batch.schema.get_field_index(name)
    values = pa.array([value], wire.SCHEMA.field(name).type)
    path = write(tmp_path / "f.arrow", batch.set_column(at, wire.SCHEMA.field(name), values))
    with pytest.raises(BadInput, match=f"column {name} has a missing value"):
        wire.read_file(path)


@pytest.mark.parametrize("start", [b"", b"A", b"ARROW1", bytes(7)])
def test_file_that_is_too_short_is_refused(tmp_path: Path, start: bytes, capsys) -> None:
    (tmp_path / "f.arrow").write_bytes(start)
    assert main(["show", str(tmp_path / "f.arrow")]) == 2
    assert "f.arrow: not an Arrow file of forests" in capsys.readouterr().err


def test_dictionary_message_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "f.arrow", pa.record_batch({"a": pa.array(["x"]).dictionary_encode()}))
    with pytest.raises(BadInput, match="not a file of forests"):
        wire.read_file(path)


def test_message_of_unknown_type_is_refused_as_schema(tmp_path: Path) -> None:
    data = bytearray(write(tmp_path / "f.arrow", wire.to_batch([SMALL])).read_bytes())
    root = 8 + struct.unpack_from("<I", data, 8)[0]
    vtable = root - struct.unpack_from("<i", data, root)[0]
    data[root + struct.unpack_from("<H", data, vtable + 6)[0]] = 77  # the type of the header
    (tmp_path / "f.arrow").write_bytes(data)
    with pytest.raises(BadInput, match="begins with a message of type unknown"):
        wire.read_file(tmp_path / "f.arrow")


@pytest.mark.parametrize("version", [b"", b"1" * 30, b"one", b"-1", "²".encode()])
def test_schema_version_that_is_no_number_is_refused(tmp_path: Path, version: bytes) -> None:
    batch = wire.to_batch([SMALL]).replace_schema_metadata({b"treeadv.schema_version": version})
    with pytest.raises(BadInput, match="not a file of forests"):
        wire.read_file(write(tmp_path / "f.arrow", batch))


@pytest.mark.parametrize("model", ["x" * 5000, "/dev/null", "\x1b[31m", "a\0b"])
def test_model_name_that_is_no_folder_is_passed_over(tmp_path: Path, model: str, capsys) -> None:
    wire.write_file(tmp_path / "f.arrow", [SMALL], model=model)
    assert main(["show", str(tmp_path / "f.arrow")]) == 0
    assert "no tokenizer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"finish": np.array([0, 9], np.int8)}, "finish 9 of leaf 1 has no meaning"),
        ({"verdict": np.array([-7, 0], np.int8)}, "verdict -7 of leaf 0 has no meaning"),
        ({"temperature": float("nan")}, "temperature nan is not a finite number"),
        ({"start": np.array([0, 2**31 - 1, -(2**31), 6], np.int32)}, "segments must hold at least one token"),
    ],
)
def test_value_without_meaning_is_refused(change: dict, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        replace(SMALL, **change).check()


def test_comb_of_6000_segments_is_drawn_in_the_terminal(tmp_path: Path, capsys) -> None:
    wire.write_file(tmp_path / "comb.arrow", [comb(6001)])
    assert main(["show", str(tmp_path / "comb.arrow")]) == 0
    shown = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "… 5976 segments with 2989 leaves left out (--html and --svg show them) …" in shown


@pytest.mark.parametrize("segments", [401, pytest.param(6001, marks=pytest.mark.slow)])
def test_comb_is_drawn_on_a_page_and_as_a_picture(tmp_path: Path, segments: int, monkeypatch) -> None:
    monkeypatch.setattr("treeadv.report.page.LEAF_PIECES", 64 * segments)
    path, page, drawing = (str(tmp_path / name) for name in ("comb.arrow", "comb.html", "comb.svg"))
    wire.write_file(Path(path), [comb(segments)])
    assert main(["show", path, "--html", page, "--svg", drawing]) == 0
    assert Path(drawing).read_text().count('class="segment"') == segments
    assert "tokens left out" in Path(page).read_text()
