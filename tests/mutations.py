"""Reads mutated files of forests in a process with limited memory, and reports every reading that is neither successful
nor refused with one line of error.

    python -m tests.mutations SEED COUNT FOLDER

The last line of its output is JSON: the number of refused files, the number of read files, and the faults.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import resource
import struct
import sys
import traceback
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from tests.replay.helpers import fill, forest_for, open_store, reserve, train
from tests.strategies import build
from treeadv import wire
from treeadv.cli.main import main
from treeadv.errors import BadInput
from treeadv.replay.history import forests, forests_of_step
from treeadv.replay.journal import Line, Reader, encode
from treeadv.replay.records import Admitted
from treeadv.storage.folder import open_folder

ROOM = 1 << 30  # bytes of address space in addition to the space of the imports
HUGE = (-1, -2, 0, 1 << 31, (1 << 31) - 1, 1 << 40, (1 << 62) + 8, -(1 << 63))


def originals() -> dict[str, bytes]:
    """Return files of forests in both formats, with and without compression."""
    many = [build([-1, 0, 0, -1], [3, 2, 4, 1], seed=n, forest_id=f"f{n}") for n in range(3)]
    many = [replace(f, gold="7", detail=("", "no number", "")) for f in many]
    out = {}
    for form in (pa.ipc.new_file, pa.ipc.new_stream):
        for kind in (None, "zstd", "lz4"):
            sink = pa.BufferOutputStream()
            with form(sink, wire.SCHEMA, options=pa.ipc.IpcWriteOptions(compression=kind)) as writer:
                writer.write_batch(wire.to_batch(many))
                writer.write_batch(wire.to_batch(many[:1]))
            out[f"{form.__name__} {kind}"] = sink.getvalue().to_pybytes()
    return out


# ---- mutations: each changes bytes in place --------------------------------------------------------------------------
def flip(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        data[rng.randrange(len(data))] = rng.randrange(256)


def truncate(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def swap(data: bytearray, rng: random.Random) -> None:
    """Exchange two ranges of 8, 16 or 64 bytes. They contain descriptions of buffers, or content of buffers."""
    size = rng.choice((8, 16, 64))
    a, b = (rng.randrange(max(1, (len(data) - size) // 8)) * 8 for _ in range(2))
    data[a : a + size], data[b : b + size] = data[b : b + size], data[a : a + size]


def declare(data: bytearray, rng: random.Random) -> None:
    """Write a huge or negative number at a place that may hold a length or an offset."""
    value = rng.choice(HUGE)
    at = rng.randrange(max(1, len(data) // 8 - 1)) * 8
    if rng.random() < 0.5:
        struct.pack_into("<q", data, at, value)
    else:
        struct.pack_into("<i", data, at + rng.choice((0, 4)), max(-(1 << 31), min(value, (1 << 31) - 1)))


def grow(data: bytearray, rng: random.Random) -> None:
    """Increase one small number, such as a count or an offset, by a small amount."""
    at = rng.randrange(len(data) // 4) * 4
    value = struct.unpack_from("<i", data, at)[0]
    if abs(value) < 1 << 20:
        struct.pack_into("<i", data, at, value + rng.choice((-8, -1, 1, 8, 4096)))


def duplicate(data: bytearray, rng: random.Random) -> None:
    a, size = rng.randrange(len(data)), rng.randrange(1, 200)
    data[a:a] = data[a : a + size]


MUTATIONS: tuple[Callable[[bytearray, random.Random], None], ...] = (flip, truncate, swap, declare, grow, duplicate)


# ---- readers ---------------------------------------------------------------------------------------------------------
def run_command(*argv: str) -> str:
    """Run `treeadv` and return its fault: a wrong exit code, or more output on stderr than one line of error and a
    note. Raises `BadInput` if the file is refused with one line."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(argv)
    errors = [line for line in err.getvalue().splitlines() if not line.startswith("treeadv: no tokenizer")]
    if code == 2 and len(errors) == 1 and errors[0].startswith("treeadv: error: "):
        raise BadInput(errors[0])
    return "" if code in (0, 1) and not errors else f"exit code {code}, stderr {errors}"


def shown(rng: random.Random, folder: Path) -> Iterator[tuple[str, Callable[[], str]]]:
    """Yield (name, call) for mutated files of forests. The call reads the file with `treeadv show`."""
    files = originals()
    path = folder / "f.arrow"
    while True:
        name = rng.choice(sorted(files))
        data, kind = bytearray(files[name]), rng.choice(MUTATIONS)
        kind(data, rng)
        path.write_bytes(data)
        target = rng.choice(((), ("--html", str(folder / "f.html")), ("--svg", str(folder / "f.svg"), "--index", "0")))
        yield f"{name}, {kind.__name__}, {target[:1]}", lambda target=target: run_command("show", str(path), *target)


def audited(rng: random.Random, folder: Path) -> Iterator[tuple[str, Callable[[], str]]]:
    """Yield (name, call) for mutated run folders. The call reads the folder with `treeadv audit`, or with the functions
    that `treeadv reproduce` uses to read forests.

    A changed record has a correct checksum, because an attacker can also write a correct checksum."""
    run = folder / "run"
    store = open_store(run, max_staleness=2)
    fill(store, 1)
    tickets = [reserve(store), reserve(store)]
    store.admit_many([t.forest_id for t in tickets], wire.to_batch([forest_for(t) for t in tickets]))
    train(store, 2, 1)
    store.commit(1)
    reserve(store)
    store.close()
    parts = sorted(p for p in (run / "replay").rglob("0*") if p.is_file())
    sound = {p: p.read_bytes() for p in parts}
    (journal,) = (p for p in parts if p.suffix == ".jsonl")
    lines = list(Reader(open_folder(str(run / "replay/journal"))))
    while True:
        file = rng.choice(parts)
        if file.suffix == ".jsonl" and rng.random() < 0.7:
            name, data = "record", b"".join(map(encode, lines))
            at = rng.randrange(len(lines))
            data = b"".join(encode(x) if n != at else _forged(encode(x), rng) for n, x in enumerate(lines))
        else:
            kind = rng.choice(MUTATIONS)
            name, data = kind.__name__, bytearray(sound[file])
            kind(data, rng)
            if file.suffix == ".arrow" and rng.random() < 0.7:
                name += ", with its checksum"
                journal.write_bytes(b"".join(encode(_resigned(line, bytes(data))) for line in lines))
        file.write_bytes(data)
        yield f"audit, {file.name}, {name}", lambda: run_command("audit", str(run))
        yield f"forests, {file.name}, {name}", lambda: (list(forests(str(run))), "")[1]
        yield f"step, {file.name}, {name}", lambda: (forests_of_step(str(run), 1), "")[1]
        for path, content in sound.items():
            path.write_bytes(content)


def _resigned(line: Line, payloads: bytes) -> Line:
    """Return the line with the checksum of the current payload."""
    if not isinstance(a := line.record, Admitted):
        return line
    return replace(line, record=replace(a, payload_crc=zlib.crc32(payloads[a.offset : a.offset + a.length])))


def _forged(line: bytes, rng: random.Random) -> bytes:
    """Return the record with one value of another type or size, and with a correct checksum."""
    tree = json.loads(line)
    del tree["crc"]
    wrong = (None, -1, 1 << 70, 1e308, "x", "../../../etc/passwd", "\x1b[31m", "\ud800", [], {"a": 1}, [["x"]], True)
    tree[rng.choice(sorted(tree))] = rng.choice(wrong)
    rest = json.dumps(tree, separators=(",", ":"))[1:].encode()
    return b'{"crc":"%08x",%b\n' % (zlib.crc32(rest), rest)


def limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def check(seed: int, count: int, folder: Path) -> dict[str, object]:
    """Read `count` mutated files. Return the number of refused files, the number of read files, and the faults."""
    rng = random.Random(seed)
    cases = shown(rng, folder), audited(rng, folder)
    refused, faults = 0, []
    limit_memory()
    for number in range(count):
        name, call = next(cases[number % 2])
        print(number, name, flush=True)  # if the process dies, its last line names the case
        try:
            fault = call()
        except BadInput as e:
            fault = "" if "\n" not in str(e) else f"{e!r}"
            refused += 1
        except Exception:
            fault = traceback.format_exc()
        if fault:
            faults.append(f"{number} {name}: {fault}")
    return {"refused": refused, "read": count - refused - len(faults), "faults": faults}


if __name__ == "__main__":
    print(json.dumps(check(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))))
