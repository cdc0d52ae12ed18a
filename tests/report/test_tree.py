"""Tests that the drawing of a forest shows every token once and every leaf with its verdict, without overlap."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from itertools import combinations
from xml.etree import ElementTree

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from tests.strategies import build, forests
from treeadv.forest import Finish, Forest, Verdict
from treeadv.learning.advantage import advantages
from treeadv.presets import PRESETS
from treeadv.report.layout import COLUMNS, LINES, layout
from treeadv.report.page import forests_page
from treeadv.report.picture import Numbers, Picture, picture
from treeadv.report.tree import standalone

SVG = "{http://www.w3.org/2000/svg}"


class Words(Numbers):
    """A vocabulary of given words: token i is `words[i % len(words)]`."""

    def __init__(self, *words: str) -> None:
        self.words = words

    def pieces(self, before, tokens):  # type: ignore[no-untyped-def]
        return [self.words[t % len(self.words)] for t in tokens]


def drawn(forest: Forest, vocabulary: Numbers | None = None) -> Picture:
    return picture(forest, vocabulary or Numbers(), advantages(forest, PRESETS["treeadv"].advantage)[0])


def classes(root: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    return [e for e in root.iter() if name in e.get("class", "").split()]


@settings(deadline=None, max_examples=50)
@given(forests())
def test_every_token_and_every_leaf_is_drawn_once(forest: Forest) -> None:
    p = drawn(forest)
    root = ElementTree.fromstring(standalone(p))
    segments = classes(root, "segment")
    assert len(segments) == forest.segments
    for s, group in enumerate(segments):
        tokens = classes(group, "t")
        assert len(tokens) == forest.lengths[s]
        text = ["".join(t.text or "" for t in token.iter(f"{SVG}text")) for token in tokens]
        assert tuple(text) == p.pieces[s]
        levels = [p.entropy_level(int(forest.start[s]) + i) for i in range(len(tokens))]
        assert [token.get("class") for token in tokens] == [f"t e{level}" for level in levels]
    badges = classes(root, "badge")
    assert [b.findtext(f"{SVG}text") for b in badges] == [p.leaf_note(leaf) for leaf in range(forest.leaves)]


@settings(deadline=None, max_examples=50)
@given(
    forests(max_length=60),
    st.sampled_from([(" word", "x\n", "\n\n"), ("字字", "a"), ("tokenwithoutanyspace" * 4, " ")]),
)
def test_boxes_are_right_of_their_parents_without_overlap(forest: Forest, words: tuple[str, ...]) -> None:
    prompt, boxes, bottom = layout(drawn(forest, Words(*words)))
    for a, b in combinations([prompt, *boxes], 2):
        apart_x = a.right <= b.x or b.right <= a.x
        apart_y = a.y + a.height <= b.y or b.y + b.height <= a.y
        assert apart_x or apart_y
    for s, parent in enumerate(forest.parent):
        assert boxes[s].x > (prompt if parent < 0 else boxes[parent]).right
        assert boxes[s].y >= 0 and boxes[s].y + boxes[s].height <= bottom
    for box in boxes:
        assert len(box.lines) <= LINES + 1
        for line in box.lines:
            ends = [run.column + cell_len(run.text) for run in line]
            assert [run.column for run in line] == [0, *ends[:-1]]
            assert ends[-1] <= COLUMNS


def test_long_segment_says_how_many_tokens_it_leaves_out() -> None:
    p = drawn(build([-1, -1], [2000, 3]), Words("ab "))
    group = classes(ElementTree.fromstring(standalone(p)), "segment")[0]
    shown = len(classes(group, "t"))
    assert classes(group, "left-out")[0].text == f"… {2000 - shown} tokens left out …"


def test_markup_in_a_text_is_escaped() -> None:
    words = Words("<script>alert(1)</script>", "&amp;", "\x00\x1b", "</svg>", '"><img src=x>')
    forest = replace(build([-1, 0, 0], [5, 5, 5]), gold="<b>1</b>", detail=("<i>a</i>", "]]>"))
    forest = replace(forest, token=np.tile(np.arange(5, dtype=np.int32), 3))
    text = forests_page("<title>", [drawn(forest, words)])
    tags = Tags()
    tags.feed(text)
    assert tags.count["script"] == 1
    assert not {"img", "b", "i"} & set(tags.count)
    shown = classes(ElementTree.fromstring(standalone(drawn(forest, words))), "segment")[0]
    assert "<script>alert(1)</script>" in "".join(shown.itertext()).replace("\n", "")


def test_page_loads_no_external_resource() -> None:
    tags = Tags()
    tags.feed(forests_page("Forests", [drawn(build([-1, 0, 0, -1], [2, 2, 2, 3]))]))
    assert not {"src", "href", "xlink:href", "data", "action"} & tags.attributes
    assert not {"link", "iframe", "object", "embed", "img"} & set(tags.count)
    assert "url(" not in tags.style and "@import" not in tags.style


def test_page_holds_the_whole_text_of_every_leaf() -> None:
    forest = build([-1, 0, 0], [400, 2, 2])
    tags = Tags()
    tags.feed(forests_page("Forests", [drawn(forest)]))
    assert tags.pre == ["".join(f"{t} " for t in forest.leaf_tokens(leaf)) for leaf in range(2)]


def test_verdicts_and_ends_are_words_not_only_colours() -> None:
    forest = build([-1] * 3, [1, 1, 1], rewards=[1.0, 0.0, 0.0])
    forest = replace(
        forest,
        verdict=np.array([Verdict.VERIFIED, Verdict.TIMEOUT, Verdict.ABORTED], np.int8),
        finish=np.array([Finish.STOP, Finish.LENGTH, Finish.ABORT], np.int8),
    )
    p = drawn(forest)
    assert [p.leaf_note(i)[2:] for i in range(3)] == ["verified 1", "timeout, cut at the limit", "aborted, lost"]


class Tags(HTMLParser):
    """Counts elements and collects attributes, style sheets and preformatted text."""

    def __init__(self) -> None:
        super().__init__()
        self.count: dict[str, int] = {}
        self.attributes: set[str] = set()
        self.style = ""
        self.pre: list[str] = []
        self._in = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1
        self.attributes |= {name for name, _ in attrs}
        self._in = tag

    def handle_endtag(self, tag: str) -> None:
        self._in = ""

    def handle_data(self, data: str) -> None:
        if self._in == "style":
            self.style += data
        if self._in == "pre":
            self.pre.append(data)
