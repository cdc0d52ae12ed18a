"""Tests the HTML of a forest in a notebook, and runs the notebook of the documents."""

from __future__ import annotations

import ast
import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import build
from treeadv.forest import Forest
from treeadv.forest.notebook import SEGMENTS, TOKENS

NOTEBOOK = Path(__file__).parents[1] / "docs" / "library.ipynb"


def cells() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(NOTEBOOK.read_text())["cells"]
    return found


def run(source: str, names: dict[str, Any]) -> Any:
    """Run a cell as a notebook does. The value of its last expression is its output."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names) if isinstance(last, ast.Expr) else None


def test_every_cell_of_the_notebook_runs() -> None:
    names: dict[str, Any] = {}
    outputs = [run("".join(c["source"]), names) for c in cells() if c["cell_type"] == "code"]
    assert outputs[0]["advantages"] == outputs[0]["completion_ids"] == (3, 3)
    assert "<details" in next(o for o in outputs if isinstance(o, Forest))._repr_html_()
    assert names["value"] == outputs[-2][0]


def test_notebook_is_kept_without_outputs() -> None:
    assert all(not c["outputs"] and c["execution_count"] is None for c in cells() if c["cell_type"] == "code")


class Reader(HTMLParser):
    """A parser that collects text and tags. An unbalanced tag is an error."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.open.append(tag)
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(forest: Forest) -> Reader:
    reader = Reader()
    reader.feed(forest._repr_html_())
    reader.close()
    assert not reader.open
    return reader


SHAPE = ([-1, 0, 0, -1, 3, 3], [2, 3, 1, 2, 2, 2])


def test_html_has_a_foldable_element_for_every_segment() -> None:
    found = read(build(*SHAPE, rewards=[1.0, 0.0, 0.0, 1.0]))
    assert found.seen.count("details") == 6
    assert found.text.count("verified 1") == 2 and found.text.count("verified 0") == 2
    assert "mean reward 0.5" in found.text and "2 leaves below" in found.text


@given(st.text(max_size=30))
def test_texts_of_a_forest_are_escaped(text: str) -> None:
    hostile = f"<script>alert(1)</script>{text}\x1b[2J"
    made = build(*SHAPE, rewards=[1.0, 0.0, 0.0, 1.0])
    found = read(replace(made, gold=hostile, forest_id=hostile, detail=(hostile,) * 4))
    assert "script" not in found.seen and found.text.count("<script>alert(1)</script>") == 6
    assert "\x1b" not in found.text


def test_html_of_a_large_forest_is_small() -> None:
    count = 4 * SEGMENTS
    made = build([-1] * count, [10 * TOKENS] * count, rewards=[0.0] * count)
    html = made._repr_html_()
    assert len(html) < SEGMENTS * 600 and f"{count - SEGMENTS} more segments are not shown" in html


def test_forest_that_is_not_graded_has_html() -> None:
    made = Forest.assemble(prompt=[1], parent=[-1, 0, 0], lengths=[2, 1, 3], token=[5] * 6, logprob=[-1.0] * 6)
    assert "not graded" in read(made).text and "ungraded" in read(made).text
