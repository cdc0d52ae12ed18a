"""Tests that the tree in the terminal has the content of the picture and fits the width of the terminal."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from tests.report.test_tree import Words, drawn
from tests.strategies import build, forests
from treeadv.forest import Forest
from treeadv.report.terminal import TOKENS, forest_tree


def printed(forest: Forest, width: int = 100, words: tuple[str, ...] = (" zq",), **options: object) -> str:
    out = io.StringIO()
    Console(file=out, width=width, **options).print(forest_tree(drawn(forest, Words(*words))))  # type: ignore[arg-type]
    return out.getvalue()


@settings(deadline=None, max_examples=30)
@given(forests(max_length=40), st.integers(60, 140))
def test_terminal_tree_shows_verdicts_within_its_width(forest: Forest, width: int) -> None:
    lines = printed(forest, width).splitlines()
    assert " ".join(lines).count("✓") == forest.leaves  # all leaves have this verdict
    assert all(cell_len(line) <= width for line in lines)


def test_tree_is_printed_with_a_line_for_each_segment() -> None:
    forest = replace(build([-1, 0, 0, -1], [2, 1, 1, 3], rewards=[1.0, 0.0, 0.0]), gold="42")
    lines = printed(forest).splitlines()
    tree = lines[next(i for i, line in enumerate(lines) if line.startswith("├")) :]
    assert [line.rstrip() for line in tree[:4]] == [
        "├──  +0.29   zq zq",
        "│   ├──  +1.15   zq  ✓ verified 1",
        "│   └──  \N{MINUS SIGN}0.58   zq  ✓ verified 0",
        "└──  \N{MINUS SIGN}0.58   zq zq zq  ✓ verified 0",
    ]
    assert "gold answer 42" in lines


def test_long_segment_is_cut_in_the_middle_with_the_count() -> None:
    text = printed(build([-1, -1], [500, 2]), width=400)
    assert f"… {500 - TOKENS} tokens left out (--full shows them) …" in text
    assert text.count("zq") == TOKENS + 2


@pytest.mark.parametrize("terminal", [True, False])
def test_output_has_colours_only_on_a_terminal(terminal: bool) -> None:
    text = printed(build([-1, -1], [3, 3]), force_terminal=terminal, color_system="truecolor" if terminal else None)
    assert ("\x1b[" in text) == terminal


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert "\x1b" not in printed(build([-1, -1], [3, 3]), words=("\x1b[2J", "\x07"))
