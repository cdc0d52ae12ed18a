"""The rules of the house that a script can check: lengths of modules and lines, no folders of a machine, one
module that renames files, and no option without a use."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from treeadv.config import Config

ROOT = Path(__file__).parents[1]
MODULES = sorted(f for top in ("treeadv", "actors") for f in (ROOT / top).rglob("*.py"))
RESULTS = sorted(f for top in ("docs", "benchmarks/results") for f in (ROOT / top).rglob("*") if f.is_file())
CODE = sorted(
    f for top in ("treeadv", "actors", "benchmarks", "deploy", "monitoring") for f in (ROOT / top).rglob("*.py")
)
WRAPPED = re.compile(r"\.(py|md|js|mjs|css|tpl|ya?ml|toml|txt)$|Makefile$|Containerfile$")
NOT_WRAPPED = re.compile(r"^docs/(examples|results)/|/vendor/|^constraints\.txt$")
FOLDERS = re.compile(r"(?<![\w.:/])/(?:work|tmp|root|home|Users|check)/\w")


def test_no_module_has_over_400_lines() -> None:
    assert [f.name for f in MODULES if len(f.read_text().splitlines()) > 400] == []


def test_no_line_of_code_has_over_120_columns() -> None:
    long = [f"{f.name}:{n}" for f in MODULES for n, x in enumerate(f.read_text().splitlines(), 1) if len(x) > 120]
    assert long == []


def test_no_line_of_text_has_over_120_columns() -> None:
    """A row of a table cannot be wrapped."""
    tops = ("treeadv", "actors", "benchmarks", "tests", "monitoring", "deploy", "docs", "helm", ".github")
    found = [*ROOT.glob("*"), *(f for top in tops for f in (ROOT / top).rglob("*"))]
    names = [str(f.relative_to(ROOT)) for f in found if f.is_file() and WRAPPED.search(f.name)]
    texts = {name: (ROOT / name).read_text().splitlines() for name in names if not NOT_WRAPPED.search(name)}
    long = [
        f"{name}:{n}" for name, text in texts.items() for n, x in enumerate(text, 1) if len(x) > 120 and x[0] != "|"
    ]
    assert texts and long == []


def test_no_name_of_a_test_has_over_60_characters() -> None:
    code = "\n".join(f.read_text() for f in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name in re.findall(r"def (test_\w+)", code) if len(name) > 60] == []


def test_documents_and_results_name_no_folder_of_a_machine() -> None:
    texts = [f for f in RESULTS if f.suffix in (".md", ".json", ".jsonl", ".html", ".yaml", ".ipynb", ".svg")]
    assert texts
    assert [str(f.relative_to(ROOT)) for f in texts if FOLDERS.search(f.read_text())] == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("--dir {}work/studies/a", True),
        ('"{}tmp/x/y"', True),
        ("https:{0}{0}host{0}home/x", False),
        ("a{}home/x", False),
    ],
)
def test_folder_of_a_machine_is_told_from_an_address(text: str, found: bool) -> None:
    assert bool(FOLDERS.search(text.format("/"))) is found


def options(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the dotted name of each option of a section of the configuration."""
    for name, info in section.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from options(info.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def keys(tree: object, prefix: str = "") -> Iterator[str]:
    """Yield the dotted name of each key of a YAML tree."""
    for name, value in tree.items() if isinstance(tree, dict) else ():
        yield f"{prefix}{name}"
        yield from keys(value, f"{prefix}{name}.")


def test_every_option_is_used_by_a_recipe_test_or_document() -> None:
    recipes = {key for f in (ROOT / "deploy" / "recipes").glob("*.yaml") for key in keys(yaml.safe_load(f.read_text()))}
    pages = [f for f in (ROOT / "docs").rglob("*.md") if f.name != "configuration.md"]
    code = [f.read_text() for f in (ROOT / "tests").rglob("*.py")]
    texts = "\n".join([*code, *(f.read_text() for f in pages), (ROOT / "README.md").read_text()])
    named = set(re.findall(r"\w+(?:\.\w+)+", texts))
    given = set(re.findall(r"(\w+)=", "\n".join(code))) | set(re.findall(r"[\"'](\w+)[\"']:", "\n".join(code)))
    unused = [o for o in options(Config) if o not in recipes | named and o.rpartition(".")[2] not in given]
    assert unused == []


def renames(code: str) -> bool:
    """Return whether code calls a function that renames files. A method `replace` with two arguments is that of str."""
    calls = [c for c in ast.walk(ast.parse(code)) if isinstance(c, ast.Call) and isinstance(c.func, ast.Attribute)]
    return any(
        c.func.attr in ("rename", "renames")
        or (c.func.attr == "replace" and (ast.unparse(c.func.value) == "os" or (len(c.args) == 1 and not c.keywords)))
        or (c.func.attr == "move" and ast.unparse(c.func.value) == "shutil")
        for c in calls
        if isinstance(c.func, ast.Attribute)
    )


def test_only_disk_renames_files() -> None:
    assert [str(f.relative_to(ROOT)) for f in CODE if renames(f.read_text())] == ["treeadv/disk.py"]


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("os.rename(a, b)", True),
        ("os.replace(a, b)", True),
        ("shutil.move(a, b)", True),
        ("path.rename(b)", True),
        ("path.replace(b)", True),
        ("text.replace('a', 'b')", False),
        ("replace(item, field=1)", False),
        ("dataclasses.replace(item, field=1)", False),
    ],
)
def test_call_that_renames_a_file_is_found(code: str, found: bool) -> None:
    assert renames(code) is found


VAGUE = {"here", "there", "held", "hold", "wanted", "way", "part", "outcome"}  # names that say nothing of the thing


def vague_names(code: str) -> list[str]:
    """Return the variables, arguments and functions of the code whose names are in `VAGUE`."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.append(node.id)
        elif isinstance(node, ast.arg):
            found.append(node.arg)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.append(node.name)
    return [name for name in found if name.strip("_").lower() in VAGUE]


def test_no_name_is_vague() -> None:
    named = {str(f.relative_to(ROOT)): vague_names(f.read_text()) for f in [*CODE, *(ROOT / "tests").rglob("*.py")]}
    assert {f: names for f, names in named.items() if names} == {}


@pytest.mark.parametrize(
    "code", ["part = 1", "for part in x: ...", "def f(way): ...", "def _held(): ...", "class Part: ..."]
)
def test_vague_name_is_found(code: str) -> None:
    assert len(vague_names(code)) == 1 and not vague_names("x.part = f(part=1)")
