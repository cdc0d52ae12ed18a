"""Tests the parts of a drawing: texts of segments, and shades for numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tests.strategies import build, forests
from treeadv.errors import BadInput
from treeadv.forest import Forest, Verdict
from treeadv.learning.advantage import advantages
from treeadv.presets import PRESETS
from treeadv.report.picture import Numbers, Vocabulary, drawn_text, elided, picture, signed


@pytest.fixture(scope="module")
def by_bytes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tokenizer with one token per byte, so that a fork can split a character."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator([], trainers.BpeTrainer(initial_alphabet=alphabet, show_progress=False))
    folder = tmp_path_factory.mktemp("bytes")
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_segments_join_to_the_text_for_any_fork_position(by_bytes: Path) -> None:
    text = "aé😀 <b>\n€x"
    ids = Tokenizer.from_file(str(by_bytes / "tokenizer.json")).encode(text).ids
    vocabulary = Vocabulary(by_bytes)
    for cut in range(len(ids) + 1):
        assert "".join(vocabulary.pieces([], ids[:cut]) + vocabulary.pieces(ids[:cut], ids[cut:])) == text
    assert vocabulary.text(ids) == text


def test_folder_without_a_tokenizer_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"tokenizer\.json: no such tokenizer; .*--model DIR"):
        Vocabulary(tmp_path)


@given(forests())
def test_shades_follow_entropy_and_the_sign_of_the_advantage(forest: Forest) -> None:
    A = advantages(forest, PRESETS["treeadv"].advantage)[0]
    p = picture(forest, Numbers(), A)
    by_entropy = [p.entropy_level(t) for t in np.argsort(forest.entropy)]
    assert by_entropy == sorted(by_entropy)
    assert set(by_entropy) <= set(range(6))
    levels = [p.advantage_level(s) for s in range(forest.segments)]
    assert [levels[s] for s in np.argsort(A)] == sorted(levels)
    assert all(np.sign(level) == np.sign(round(float(a), 9)) for level, a in zip(levels, A, strict=True))
    assert max(map(abs, levels)) == (4 if np.abs(A).max() > 0 else 0)


def test_picture_of_an_ungraded_forest_says_ungraded() -> None:
    graded = build([-1, 0, 0], [2, 2, 2])
    forest = graded.with_rewards([np.nan] * 2, [Verdict.UNGRADED] * 2)
    p = picture(forest, Numbers(), None)
    assert p.advantage_level(0) == 0
    assert "advantage" not in p.segment_note(0)
    assert p.leaf_note(0) == "· ungraded"


@given(st.integers(0, 200), st.integers(1, 60))
def test_text_that_does_not_fit_is_cut_in_the_middle(count: int, limit: int) -> None:
    head, tail = elided(count, limit)
    assert len(head) + len(tail) == min(count, limit)
    assert list(head) == list(range(len(head)))
    assert list(tail) == list(range(count - len(tail), count))


def test_control_characters_of_drawn_text_become_visible() -> None:
    assert drawn_text("a\tb\n\x00\x7f") == "a␉b⏎\n␀␡"


@pytest.mark.parametrize(("value", "text"), [(0.0, "0"), (-0.001, "0"), (0.584, "+0.58"), (-1.0, "\N{MINUS SIGN}1.00")])
def test_advantage_is_shown_with_its_sign(value: float, text: str) -> None:
    assert signed(value) == text
