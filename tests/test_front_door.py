"""Tests the names that `import treeadv` exports, their documentation and the examples in it."""

from __future__ import annotations

import doctest
import re
import subprocess
import sys
from pathlib import Path

import pytest

import treeadv
from treeadv.config import build

CALLABLE = [name for name in treeadv.__all__ if callable(getattr(treeadv, name))]
EXAMPLES = [name for name in CALLABLE if name not in ("BadForest", "BadInput", "Finish", "Verdict")]


def test_import_loads_no_heavy_library() -> None:
    code = "import sys, treeadv; print({'torch', 'numpy', 'ray', 'pyarrow', 'pydantic'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "set()"


def test_every_exported_name_has_a_module() -> None:
    assert sorted(treeadv.__all__) == sorted(treeadv._PLACES)
    assert set(treeadv.__all__) <= set(dir(treeadv))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        treeadv.nothing  # noqa: B018


def test_example_of_the_readme_runs(tiny_model: Path) -> None:
    page = (Path(__file__).parent.parent / "README.md").read_text()
    (block,) = re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)
    code = block.replace("smollm2-135m-instruct", str(tiny_model))
    names: dict[str, object] = {}
    exec(code, names)
    assert len(names["slopes"][0]) == names["forest"].tokens


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_in_the_docstring_runs(name: str, tiny_model: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = {n: getattr(treeadv, n) for n in treeadv.__all__} | {"model": tiny_model, "Path": Path}
    (found,) = doctest.DocTestFinder(recurse=False).find(getattr(treeadv, name), name, module=False, globs=names)
    assert found.examples, f"{name} has no example"
    assert doctest.DocTestRunner().run(found).failed == 0


def test_overrides_do_not_change_the_given_tree() -> None:
    tree = {"task": {"source": "p.jsonl"}, "learner": {"lr": 1e-4}}
    assert build(tree, ["learner.lr=1e-5", "sampling.leaves=4"], "test").learner.lr == 1e-5
    assert tree == {"task": {"source": "p.jsonl"}, "learner": {"lr": 1e-4}}
