"""Tests that text from other sources reaches a terminal, a log, a page or a picture without characters that control the
output."""

from __future__ import annotations

import io
import logging
import re
import unicodedata
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from tests.strategies import build
from treeadv import wire
from treeadv.cli.main import main
from treeadv.forest import Forest
from treeadv.learning.advantage import advantages
from treeadv.presets import PRESETS
from treeadv.report.page import forests_page
from treeadv.report.picture import Numbers, Picture, picture
from treeadv.report.terminal import forest_tree
from treeadv.report.tree import standalone
from treeadv.visible import visible, visible_logger

# Characters that control a terminal or the order of text, or that XML does not allow
ACTING = ["\x00", "\x1b", "\x9b", "\x07", "\r", "\x85", "\u061c", "\u200b", "\u202e", "\u2066", "\u2028", "\ufeff"]
ACTING += ["\ufffe", "\uffff", "\ud800", "\udfff", "\U000e0041", "\U0001fffe"]
texts = st.text(st.one_of(st.characters(exclude_categories=()), st.sampled_from(ACTING)), max_size=30)


def acts(text: str, allowed: str = "") -> list[str]:
    """Return the characters of a text that no reader can see."""
    return [c for c in text if not c.isprintable() and unicodedata.category(c) != "Zs" and c not in allowed]


class Words(Numbers):
    def __init__(self, *words: str) -> None:
        self.words = words

    def pieces(self, before, tokens):  # type: ignore[no-untyped-def]
        return [self.words[t % len(self.words)] for t in tokens]

    def text(self, tokens):  # type: ignore[no-untyped-def]
        return "".join(self.words)


def hostile(text: str) -> Forest:
    forest = build([-1, 0, 0], [2, 2, 2])
    return replace(forest, forest_id=text, gold=text, rule=text, prompt_id=text, verifier=text, detail=(text, "x"))


def drawn(text: str) -> Picture:
    forest = hostile(text)
    return picture(forest, Words(text or "a", " "), advantages(forest, PRESETS["treeadv"].advantage)[0])


@given(texts)
def test_visible_text_has_nothing_that_acts(text: str) -> None:
    shown = visible(text)
    assert acts(shown) == []
    assert visible(shown) == shown
    assert acts(visible(text, newline="\n"), allowed="\n") == []


@given(st.text(st.characters(categories=["L", "N", "P", "S", "Zs", "M"])))
def test_visible_text_stays_as_it_is(text: str) -> None:
    assert visible(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J", "␛[2J"),
        ("\x9b31m", "\\x9b31m"),
        ("a\u202eb", "a\\u202eb"),
        ("\ud800", "\\ud800"),
        ("a\nb\t", "a⏎b␉"),
    ],
)
def test_acting_characters_are_written_out(text: str, shown: str) -> None:
    assert visible(text) == shown


@settings(deadline=None, max_examples=25)
@given(texts)
def test_picture_of_any_text_is_well_formed_xml(text: str) -> None:
    svg = standalone(drawn(text))
    root = ElementTree.fromstring(svg.encode())
    assert acts(svg, allowed="\n") == []
    assert visible(text, newline="\n") in (root.findtext("{http://www.w3.org/2000/svg}title") or "")


@settings(deadline=None, max_examples=15)
@given(texts)
def test_page_of_any_text_has_nothing_that_acts(text: str) -> None:
    page = forests_page(text, [drawn(text)])
    page.encode()
    assert acts(page, allowed="\n") == []


@settings(deadline=None, max_examples=25)
@given(texts)
def test_terminal_gets_only_the_escapes_of_the_drawing(text: str) -> None:
    out = io.StringIO()
    Console(file=out, force_terminal=True, width=200, color_system="truecolor").print(forest_tree(drawn(text)))
    plain = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())
    assert acts(plain, allowed="\n") == []


@settings(deadline=None, max_examples=25)
@given(texts, texts)
def test_log_line_has_nothing_that_acts(message: str, reason: str) -> None:
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    logger = visible_logger("treeadv.test_visible")
    logger.propagate = False
    logger.addHandler(handler)
    try:
        try:
            raise ValueError(reason)
        except ValueError:
            logger.exception("forest %s: %s", message, reason)
    finally:
        logger.removeHandler(handler)
    assert out.getvalue().startswith(f"forest {visible(message)}: {visible(reason)}\n")
    assert acts(out.getvalue(), allowed="\n") == []


ESCAPES = "\x1b]0;owned\x07\x9b2J\u202e"


@pytest.mark.parametrize(
    "argv",
    [["show", ESCAPES], ["audit", ESCAPES], ["grade", ESCAPES], ["report", ESCAPES], [ESCAPES]],
    ids=lambda argv: argv[0] if len(argv) > 1 else "command",
)
def test_error_that_quotes_an_argument_is_visible(argv: list[str], capsys) -> None:
    try:
        assert main(argv) == 2
    except SystemExit as e:
        assert e.code == 2
    err = capsys.readouterr().err
    assert "owned" in err and acts(err, allowed="\n") == [] and err.count("\n") == 1


def test_error_that_quotes_a_file_is_visible(tmp_path: Path, capsys) -> None:
    good = hostile(ESCAPES)
    batch = wire.to_batch([good])
    at = batch.schema.get_field_index("temperature")
    bad = batch.set_column(at, wire.SCHEMA.field(at), np.array([-1.0]))
    with pa.ipc.new_stream(str(tmp_path / "f.arrow"), bad.schema) as writer:
        writer.write_batch(bad)
    assert main(["show", str(tmp_path / "f.arrow")]) == 2
    err = capsys.readouterr().err
    assert "␛]0;owned␇\\x9b2J\\u202e: temperature" in err and acts(err, allowed="\n") == []


def test_model_name_of_a_file_is_visible(tmp_path: Path, capsys) -> None:
    wire.write_file(tmp_path / "f.arrow", [hostile(ESCAPES)], model=ESCAPES)
    assert main(["show", str(tmp_path / "f.arrow")]) == 0
    said = capsys.readouterr()
    assert acts(said.err + said.out, allowed="\n") == []


def test_every_logger_of_the_project_makes_text_visible() -> None:
    root = Path(__file__).parent.parent
    for path in [*root.glob("treeadv/**/*.py"), *root.glob("actors/**/*.py")]:
        if path.name != "visible.py":
            assert "= logging.getLogger(" not in path.read_text(), f"{path}: use visible_logger"
