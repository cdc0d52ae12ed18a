"""Fixtures of the tests of the chart, the rules and the dashboards: pinned tools and rendered manifests."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy import gethelm, getnode
from tests.deploy.manifests import CHART, Helm, Render


@pytest.fixture(scope="session")
def tools() -> Path:
    """Return the folder with helm3, helm4 and kubectl."""
    return gethelm.fetch()


@pytest.fixture(scope="session")
def node() -> Path:
    """Return the folder with the Node packages."""
    return getnode.prepare()


@pytest.fixture(scope="session")
def helm(tools: Path) -> Helm:
    def call(*args: str, version: str = "helm4") -> subprocess.CompletedProcess[str]:
        return subprocess.run([tools / version, *args], capture_output=True, text=True, timeout=60)

    return call


@pytest.fixture(scope="session")
def render(helm: Helm) -> Render:
    """Return a function render(values, version=, kube=), which renders ci/<values>.yaml as release `run1` in namespace
    `rl`."""

    @cache
    def documents(values: str, version: str = "helm4", kube: str = "1.34.0") -> list[dict[str, Any]]:
        file = str(CHART / "ci" / f"{values}.yaml")
        out = helm("template", "run1", str(CHART), "-n", "rl", "-f", file, "--kube-version", kube, version=version)
        assert out.returncode == 0, out.stderr
        return [d for d in yaml.safe_load_all(out.stdout) if d]

    return documents
