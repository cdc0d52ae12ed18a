"""Tests that every import, lazy ones included, points to a lower layer of docs/architecture.md."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# The layers from the lowest to the highest. A unit may import units of earlier rows, and no other unit of its own row.
LAYERS = (
    ("treeadv", "treeadv.errors", "treeadv.scrapers", "treeadv.seeds", "treeadv.visible"),
    (
        "treeadv.disk",
        "treeadv.dtypes",
        "treeadv.extensions",
        "treeadv.forest",
        "treeadv.jsonl",
        "treeadv.messages",
        "treeadv.metrics",
        "treeadv.places",
        "treeadv.recipes",
        "treeadv.section",
    ),
    ("treeadv.engine_config", "treeadv.presets", "treeadv.rewards"),
    ("treeadv.sections", "treeadv.task_config", "treeadv.wire"),
    ("treeadv.config",),
    ("treeadv.command_line",),
    ("treeadv.data", "treeadv.storage"),
    ("treeadv.engines",),
    ("treeadv.sampling", "treeadv.learning"),
    ("treeadv.replay", "treeadv.evaluation", "treeadv.tracking"),
    ("treeadv.checks",),
    ("treeadv.planning", "treeadv.report", "treeadv.launch"),
    ("treeadv.local", "treeadv.view"),
    ("treeadv.adapters", "treeadv.library", "treeadv.study"),
    ("treeadv.cli",),
    ("actors",),
)
FORBIDDEN = (
    ("treeadv", "ray"),
    ("treeadv", "actors"),
    ("treeadv.learning", "treeadv.replay"),
    ("treeadv.learning", "treeadv.storage"),
    ("treeadv.replay", "treeadv.metrics"),
    ("treeadv.engines.base", "treeadv.engines.sglang"),
)


def sources() -> dict[str, ast.Module]:
    """Return the module name and the syntax tree of every file of the two packages."""
    files = [*ROOT.glob("treeadv/**/*.py"), *ROOT.glob("actors/**/*.py")]
    names = [".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for f in files]
    return {name: ast.parse(f.read_text()) for name, f in zip(names, files, strict=True)}


SOURCES = sources()


def imported(tree: ast.AST) -> Iterator[str]:
    """Return the modules that a file imports, except for imports for type checking. `from x import y` counts as x.y if
    x.y is a module."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, "imports name the whole path"
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in SOURCES else node.module for name in modules)
        else:
            yield from imported(node)


def unit(module: str) -> str:
    """Return the entry of LAYERS that a module belongs to."""
    parts = module.split(".")
    return parts[0] if parts[0] == "actors" else ".".join(parts[:2])


def test_every_unit_has_a_layer() -> None:
    assert {unit(module) for module in SOURCES} == {name for row in LAYERS for name in row}


@pytest.mark.parametrize("module", SOURCES)
def test_module_imports_lower_layers_only(module: str) -> None:
    rank = {name: n for n, row in enumerate(LAYERS) for name in row}
    for name in set(imported(SOURCES[module])):
        if name in SOURCES and unit(name) != unit(module):
            assert rank[unit(name)] < rank[unit(module)], f"{module} imports {name}, which is in no lower layer"


@pytest.mark.parametrize(("package", "other"), FORBIDDEN)
def test_package_does_not_import_the_other(package: str, other: str) -> None:
    for module, tree in SOURCES.items():
        if f"{module}.".startswith(f"{package}."):
            found = [name for name in imported(tree) if f"{name}.".startswith(f"{other}.")]
            assert not found, f"{module} imports {found}"


def test_modules_import_each_other_in_no_circle() -> None:
    graph = {module: {n for n in imported(tree) if n in SOURCES and n != module} for module, tree in SOURCES.items()}
    TopologicalSorter(graph).prepare()  # this call raises CycleError for a cycle
