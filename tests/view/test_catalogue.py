"""Tests that the rows of a run match its files during the run, after a crash and with damage."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.view.runs import digest, forests, run_of, tree
from treeadv.config import QueueConfig
from treeadv.errors import BadInput
from treeadv.replay.history import read_history
from treeadv.replay.store import ReplayStore
from treeadv.storage.lock import LocalLock
from treeadv.view.catalogue import Catalogue
from treeadv.view.sources import open_source
from treeadv.wire import to_batch, write_file


def rows(catalogue: Catalogue) -> list[dict]:
    return catalogue.changes(0, 10**6)["rows"]


def test_rows_name_the_step_and_the_facts_of_each_forest(catalogue: Catalogue) -> None:
    found = sorted(rows(catalogue), key=lambda row: row["draw"])
    assert [(row["step"], row["place"], row["state"]) for row in found] == [(n, 0, "trained") for n in range(1, 7)]
    third = found[2]["facts"]
    assert third["verdicts"] == {"wrong": 1, "unparsed": 1} and third["cut"] == 1
    assert third["rewards"] == (0.0, 0.0) and (third["shortest"], third["longest"]) == (18, 32)
    keys = [row["facts"]["prompt_key"] for row in found]
    assert keys[0] == keys[2] == keys[4] and len(set(keys)) == 4
    assert catalogue.changes(0, 99)["prompts"][keys[0]] == "A: what is 2+2?"


def test_changes_come_in_pages_that_hold_each_row_once(catalogue: Catalogue) -> None:
    since, seen = 0, []
    while page := catalogue.changes(since, 4)["rows"]:
        since = catalogue.changes(since, 4)["serial"]
        seen += [row["key"] for row in page]
    assert len(seen) == len(set(seen)) == 6 and since == catalogue.about()["serial"]


def test_looking_changes_no_file_and_needs_no_lock(run: Path) -> None:
    lock = LocalLock(run / "replay")  # a driver also holds this lock
    before = digest(run)
    catalogue = Catalogue(open_source(run))
    catalogue.read_all()
    catalogue.search("owl", 0)
    assert catalogue.about()["state"] == "running"
    assert digest(run) == before
    lock.release()
    assert catalogue.source.about()["state"] == "finished"


@pytest.mark.parametrize(
    ("text", "draws"),
    [("thinking <answer>4", [0, 4]), ("THINK", [0, 2, 4]), ("what is 3+3", [1]), ("<b>owl</b>", [3]), ("nowhere", [])],
)
def test_search_finds_text_over_forks_in_any_case(catalogue: Catalogue, text: str, draws: list[int]) -> None:
    found, after = [], 0
    while after is not None:
        page = catalogue.search(text, after)
        found += page["found"]
        after = page["next"]
    of = {row["key"]: row["draw"] for row in rows(catalogue)}
    assert [of[key] for key in found] == draws


def cut(path: Path, lost: int) -> None:
    path.write_bytes(path.read_bytes()[:-lost])


def test_cut_files_of_a_crashed_run_hide_only_what_they_held(run: Path, tmp_path: Path) -> None:
    crashed = tmp_path / "crashed"
    shutil.copytree(run, crashed)
    (payload,) = (crashed / "replay" / "payloads").glob("*.arrow")
    cut(payload, 600)
    cut(crashed / "metrics.jsonl", 30)
    journal = max((crashed / "replay" / "journal").glob("*.jsonl"))
    cut(journal, 9)
    before = digest(crashed)
    catalogue = Catalogue(open_source(crashed))
    catalogue.read_all()
    about = catalogue.about()
    assert (about["state"], about["step"], about["fault"]) == ("stopped", 5, "")
    facts = {row["draw"]: row["facts"] for row in rows(catalogue)}
    assert all(not facts[n]["fault"] for n in range(5))
    assert re.search(r"payload is missing|checksum", facts[5]["fault"])
    assert digest(crashed) == before


def test_damage_inside_the_journal_is_named_and_the_rest_shown(run: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(run, damaged)
    journal = min((damaged / "replay" / "journal").glob("*.jsonl"))
    lines = journal.read_bytes().splitlines(keepends=True)
    lines[9] = lines[9].replace(b"kind", b"kinb")
    journal.write_bytes(b"".join(lines))
    records = damaged / "metrics.jsonl"
    records.write_text("{\n" + records.read_text())
    catalogue = Catalogue(open_source(damaged))
    fault = catalogue.about()["fault"]
    assert "is damaged (checksum)" in fault and "metrics.jsonl: line 1 is damaged" in fault
    assert 0 < len(rows(catalogue)) < 6


def test_run_without_a_journal_says_so(run: Path, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    shutil.copy(run / "config.yaml", tmp_path / "new")
    catalogue = Catalogue(open_source(tmp_path / "new"))
    assert "has no journal" in catalogue.about()["fault"] and rows(catalogue) == []


def test_forests_appear_while_the_queue_writes(run: Path, tmp_path: Path) -> None:
    shutil.copy(run / "config.yaml", tmp_path)
    store = ReplayStore(str(tmp_path), QueueConfig(), forests_per_step=1, seed=0, session="test", step=0)
    catalogue = Catalogue(open_source(tmp_path))
    for step, forest in enumerate(forests(), 1):
        ticket = store.reserve("w", "", lambda _draw, id=forest.prompt_id: id)
        assert ticket is not None
        catalogue.refresh()
        assert catalogue.row(ticket.forest_id).state == "reserved"
        store.admit(ticket.forest_id, to_batch([replace(forest, forest_id=ticket.forest_id)]))
        catalogue.refresh()
        assert catalogue.row(ticket.forest_id).state == "ready"
        assert catalogue.forest(ticket.forest_id).gold == forest.gold
        lease = store.lease(1, step - 1)
        assert lease is not None
        store.ack(lease.lease_id, step)
        store.commit(step)
        catalogue.refresh()
        row = catalogue.row(ticket.forest_id)
        assert (row.state, row.step) == ("trained", step)
    store.close()


@pytest.mark.slow
def test_forests_of_a_killed_writer_appear_while_it_writes(run: Path, tmp_path: Path) -> None:
    live = tmp_path / "live"
    live.mkdir()
    shutil.copy(run / "config.yaml", live)
    command = [sys.executable, "-m", "tests.replay.writer", str(live), "none", "1000000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        catalogue, counts = Catalogue(open_source(live)), []
        until = time.monotonic() + 60
        while time.monotonic() < until and (len(counts) < 4 or counts[-1] == counts[0]):
            catalogue.refresh()
            key = next(reversed(catalogue.keys()), None)
            if key:
                assert catalogue.forest(key).forest_id == key
            counts.append(catalogue.about()["rows"])
            assert catalogue.fault == ""
        writer.send_signal(signal.SIGKILL)
    assert counts == sorted(counts) and counts[-1] > counts[0]
    catalogue.refresh()
    assert {row["key"] for row in rows(catalogue)} == set(read_history(live).attempts)


def test_forests_of_a_file_need_no_ids(tmp_path: Path, tiny_model: Path) -> None:
    made = tree("A", "b", ["c", "d"], "1")
    write_file(tmp_path / "two.arrow", [made, made], str(tiny_model))
    catalogue = Catalogue(open_source(tmp_path / "two.arrow"))
    catalogue.read_all()
    assert sorted((row["key"], row["state"]) for row in rows(catalogue)) == [("0", "file"), ("1", "file")]
    assert catalogue.forest("1") == made
    with pytest.raises(BadInput, match="no such forest"):
        catalogue.forest("2")


def test_preset_of_a_run_cannot_be_replaced(run: Path) -> None:
    with pytest.raises(BadInput, match=r"--preset grpo: .* is a run"):
        open_source(run, preset="grpo")


def test_new_rows_of_a_run_get_new_change_numbers(tmp_path: Path, tiny_model: Path) -> None:
    first = Catalogue(open_source(run_of(tmp_path, tiny_model, [tree("A", "b", ["c", "d"], "1")])))
    serial = first.about()["serial"]
    assert first.changes(serial, 9)["rows"] == []
    first.read_all()
    (row,) = first.changes(serial, 9)["rows"]
    assert row["facts"]["prompt_key"]
