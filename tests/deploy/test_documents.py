"""Tests documents that are generated from the code, and files of the project that repeat facts of the code."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from deploy import configuration
from treeadv.config import describe


def test_configuration_page_is_up_to_date() -> None:
    assert configuration.PAGE.read_text() == configuration.page(), "run: python -m deploy.configuration"


def test_every_field_of_the_configuration_has_a_meaning() -> None:
    assert [key for key, _, text in describe() if not text] == []


def test_configuration_page_has_a_row_for_every_field() -> None:
    page = configuration.page()
    assert [key for key, _, _ in describe() if f"| `{key}` |" not in page] == []


def test_troubleshooting_page_quotes_messages_of_the_code() -> None:
    root = Path(__file__).parents[2]
    table = (root / "docs" / "troubleshooting.md").read_text().split("## While it runs")[0]
    quoted = re.findall(r"^\| `(.+?)` \|", table, re.M)
    source = "\n".join(f.read_text() for name in ("treeadv", "actors") for f in (root / name).rglob("*.py"))
    assert len(quoted) > 5
    assert [text for text in quoted if text not in source] == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_sizes_of_models_are_the_output_of_their_commands() -> None:
    root = Path(__file__).parents[2]
    page = (root / "docs" / "kubernetes.md").read_text()
    rows = re.findall(r"^\| .* \| (\d+) x (.*?) GB \| (\d+) x (.*?) GB \| `treeadv (plan .*?)` \|$", page, re.MULTILINE)
    assert len(rows) == 4
    for *sizes, command in rows:
        line = [sys.executable, "-m", "treeadv.cli.main", *shlex.split(command)]
        said = subprocess.run(line, cwd=root, capture_output=True, text=True, timeout=600).stdout
        found = [
            re.search(rf"^{role} x (\d+): (\S+) GB on 1 GPU$", said, re.MULTILINE) for role in ("learner", "generator")
        ]
        assert [size for match in found if match for size in match.groups()] == sizes
