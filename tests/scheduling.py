"""The distribution of the tests over processes of pytest-xdist: a group of files stays in one process.

All files that start Ray form a group, and so do all that start SGLang: two of them at a time would slow each other down
past their limits. The files of tests/deploy share rendered charts. Every other file is a group of its own.
(`--dist loadgroup` does the same by marks, but pytest-xdist 3.8 finds no group under pytest 9.2.)"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).resolve().parents[1]
_RAY = re.compile(
    r"^(import|from) ray\b|^from tests\.(running import .*\bstart|injection import .*\bRun)\b", re.MULTILINE
)


@cache
def group(file: str) -> str:
    """Return the group of a test file. `file` is its path below the root of the repository."""
    text = (ROOT / file).read_text()
    if _RAY.search(text):
        return "ray"
    if "mark.sglang" in text:
        return "sglang"
    return "deploy" if file.startswith("tests/deploy/") else file


class _Scheduling(LoadScopeScheduling):
    def _split_scope(self, nodeid: str) -> str:
        return group(nodeid.partition("::")[0])


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LoadScopeScheduling:
    return _Scheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests with Ray first, because they take the longest."""
    items.sort(key=lambda item: group(item.nodeid.partition("::")[0]) != "ray")
