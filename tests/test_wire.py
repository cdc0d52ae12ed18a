"""Tests forests in Arrow. No field may be lost, no array may be copied, and other data must be refused."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields, replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import build, forests
from treeadv import wire
from treeadv.errors import BadForest, BadInput
from treeadv.forest import Forest

SMALL = build([-1, 0, 0], [2, 3, 1])


def same(a: Forest, b: Forest) -> bool:
    return all(
        np.array_equal(x, y, equal_nan=x.dtype.kind == "f")
        if isinstance(x, np.ndarray)
        else x == y or (x != x and y != y)
        for x, y in ((getattr(a, f.name), getattr(b, f.name)) for f in fields(Forest))
    )


@given(st.lists(forests(), min_size=1, max_size=4))
def test_round_trip_keeps_every_field(many: list[Forest]):
    assert all(same(a, b.check()) for a, b in zip(many, wire.from_batch(wire.to_batch(many)), strict=True))


@given(st.lists(forests(), min_size=1, max_size=4))
def test_read_arrays_are_views_of_the_buffers(many: list[Forest]):
    batch = wire.to_batch(many)
    for name, kind in zip(batch.schema.names, batch.schema.types, strict=True):
        if not pa.types.is_list(kind) or name == "detail":
            continue
        buffer = batch.column(name).values.buffers()[1]
        for f in wire.from_batch(batch):
            view = getattr(f, name)
            assert buffer.address <= view.ctypes.data and view.ctypes.data + view.nbytes <= buffer.address + buffer.size
            assert not view.flags.writeable and not view.flags.owndata


@given(st.lists(forests(), min_size=2, max_size=4), st.data())
def test_slice_of_a_batch_reads_as_its_rows(many: list[Forest], data):
    a = data.draw(st.integers(0, len(many) - 1))
    got = wire.from_batch(wire.to_batch(many).slice(a, 1))
    assert len(got) == 1 and same(got[0], many[a])


def test_details_of_a_verifier_survive_the_round_trip(tmp_path):
    f = replace(SMALL, detail=("", "no number"))
    assert wire.from_batch(wire.to_batch([f]))[0].detail == ("", "no number")


@pytest.mark.parametrize("form", ["file", "stream"])
def test_file_is_read_in_both_arrow_formats(tmp_path, form):
    path = tmp_path / "f.arrow"
    if form == "file":
        wire.write_file(path, [SMALL], model="somewhere")
    else:
        with pa.ipc.new_stream(str(path), wire.SCHEMA) as w:
            w.write_batch(wire.to_batch([SMALL]))
    got, model = wire.read_file(path)
    assert same(got[0], SMALL) and model == ("somewhere" if form == "file" else "")


def test_reading_forests_imports_no_pandas(tmp_path):
    path = tmp_path / "f.arrow"
    wire.write_file(path, [SMALL, SMALL])
    code = (
        "import sys; from pathlib import Path; from treeadv.wire import read_file\n"
        f"read_file(Path({str(path)!r})); print('pandas' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == "False\n"


def test_bad_forest_is_not_written():
    with pytest.raises(BadForest):
        wire.to_batch([replace(SMALL, logprob=-SMALL.logprob)])


def test_newer_schema_is_refused_by_its_number(tmp_path):
    newer = wire.to_batch([SMALL]).replace_schema_metadata({b"treeadv.schema_version": b"7"})
    with pytest.raises(BadInput, match=r"schema 7 is newer than this release reads \(1\): upgrade"):
        wire.from_batch(newer)


def test_file_of_another_format_is_refused_by_name(tmp_path):
    text = tmp_path / "x.arrow"
    text.write_text("not arrow")
    with pytest.raises(BadInput, match=r"x\.arrow: not an Arrow file of forests"):
        wire.read_file(text)
    with pytest.raises(BadInput, match="no such file"):
        wire.read_file(tmp_path / "none.arrow")
    other = pa.record_batch({"a": [1]})
    with pytest.raises(BadInput, match="not a file of forests"):
        wire.from_batch(other)
