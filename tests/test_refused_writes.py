"""Tests runs in an object store that refuses writes. Such a run prints one line and ends. Then the same command or the
printed command continues it."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.refusing_store import RefusingStore
from tests.replay.test_s3 import keys
from tests.test_storage import of
from treeadv.errors import BadInput
from treeadv.replay.audit import audit
from treeadv.storage.objects import ObjectFolder


@pytest.fixture
def store(s3: str) -> Iterator[RefusingStore]:
    proxy = RefusingStore(s3)
    yield proxy
    proxy.close()


@pytest.fixture
def place(bucket: tuple[str, Any, str], s3: str, store: RefusingStore) -> tuple[str, Any, str]:
    """Provide (name, client, URI of a run's folder). Requests to the URI pass through the proxy."""
    name, client, uri = bucket
    return name, client, uri.replace(s3.removeprefix("http://"), store.netloc)


def train(*arguments: object) -> tuple[int, str]:
    """Run `treeadv train --local`. Return its exit code and its output."""
    line = [sys.executable, "-m", "actors.cli", "train", *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=200)
    return done.returncode, done.stdout + done.stderr


def small(uri: str, tmp_path: Path, model: Path) -> Path:
    return of(uri, tmp_path, model, run__steps=2, generator={"count": 1, "forests": 2, "threads": 1})


@pytest.mark.parametrize(
    ("method", "operation", "said"),
    [
        pytest.param("PUT", lambda folder: folder.write_whole("a", b"x"), "a.* cannot be written", id="write"),
        pytest.param("POST", lambda folder: folder.lock("000001-a", 0), "lock.* cannot be written", id="lock"),
        pytest.param("PUT", lambda folder: folder.truncate("kept", 1), "kept.* cannot be written", id="truncate"),
        pytest.param("PUT", lambda folder: folder.copy_file("kept", "b"), "b.* cannot be written", id="copy"),
        pytest.param("DELETE", lambda folder: folder.delete("kept"), "kept.* cannot be deleted", id="delete"),
        pytest.param("GET", lambda folder: folder.read("kept"), "kept.* cannot be read", id="read"),
        pytest.param("GET", lambda folder: folder.sizes(""), ".* cannot be read", id="list"),
        pytest.param("HEAD", lambda folder: folder.owner(), "lock.* cannot be read", id="owner"),
    ],
)
def test_refused_request_gives_one_line_that_names_the_object(
    place: tuple[str, Any, str],
    store: RefusingStore,
    method: str,
    operation: Callable[[ObjectFolder], object],
    said: str,
) -> None:
    _, _, uri = place
    folder = ObjectFolder(uri)
    folder.write_whole("kept", b"kept")
    store.methods, store.refuses = (method, "POST" if method == "PUT" else method), lambda path: True
    with pytest.raises(BadInput, match=rf"^run.storage: s3://[^ ?]+/{said} \(") as refused:
        operation(folder)
    assert store.refused and "\n" not in str(refused.value)


@pytest.mark.slow
@pytest.mark.parametrize("refused", ["writable", "config.yaml"])
def test_start_in_a_full_store_leaves_nothing_and_works_again(
    place: tuple[str, Any, str], store: RefusingStore, tmp_path: Path, tiny_model: Path, refused: str
) -> None:
    name, client, uri = place
    file = small(uri, tmp_path, tiny_model)
    store.refuses = lambda path: path.endswith(refused)
    code, said = train("--local", "--config", file)
    assert store.refused and code == 2 and "Traceback" not in said, said
    assert re.search(r"run.storage: s3://\S+ cannot be written \(.*the bucket is full.*\)", said.splitlines()[-1]), said
    assert not (tmp_path / "one").exists() and keys(client, name) == []
    store.refuses = lambda path: False
    code, said = train("--local", "--config", file)
    assert code == 0, said
    assert audit(uri).rows["trained"]["forests"] == 6


@pytest.mark.slow
@pytest.mark.parametrize("refused", ["/replay/lock", "/replay/journal/", "/replay/payloads/", "/checkpoints/"])
def test_full_store_ends_the_run_with_a_command_that_goes_on(
    place: tuple[str, Any, str], store: RefusingStore, tmp_path: Path, tiny_model: Path, refused: str
) -> None:
    _, _, uri = place
    store.refuses = lambda path: refused in path
    code, said = train("--local", "--config", small(uri, tmp_path, tiny_model))
    last = said.strip().splitlines()[-1]
    assert store.refused and code == 2 and "Traceback" not in said, said
    assert "cannot be written" in last and "the bucket is full" in last, last
    store.refuses = lambda path: False
    printed = re.search(r"treeadv train (.+)\)$", last)
    assert printed, last
    code, said = train(*shlex.split(printed[1]))
    assert code == 0, said
    report = audit(uri)
    assert report.sound and report.rows["trained"]["forests"] == 6, report.table()
