"""Tests the problems and the pretraining text of the study `cipher`."""

from __future__ import annotations

import numpy as np

from benchmarks.cipher import BAR, HARD, RIGHT_HARD, VOCABULARY, problems, substitution, text_batch
from treeadv.local.warmup import END, IGNORED


def letters(tokens: np.ndarray) -> str:
    return "".join(VOCABULARY[t] for t in tokens)


def test_files_share_no_word_and_answers_replace_each_letter() -> None:
    files = problems()
    words = [row["problem"] for file in files.values() for row in file]
    assert len(set(words)) == len(words)
    pairs = {
        pair for rows in files.values() for row in rows for pair in zip(row["problem"], row["answer"], strict=False)
    }
    assert len(pairs) == len({letter for letter, _ in pairs}) == len({other for _, other in pairs}) == 26


def test_loss_reads_the_answer_and_its_end_only() -> None:
    tokens, targets = text_batch(8, np.random.default_rng(0))
    for row, target in zip(tokens, targets, strict=True):
        word, answer = letters(row).split(BAR)
        read = letters(target[target != IGNORED])
        assert read == answer[: len(word) + 1] and read[-1] == END


def test_only_hard_letters_are_mostly_wrong() -> None:
    right, _, hard = substitution()
    tokens, _ = text_batch(2000, np.random.default_rng(1))
    first, hits = VOCABULARY.index("a"), {True: [0, 0], False: [0, 0]}
    for row in tokens:
        length = int(np.flatnonzero(row == VOCABULARY.index(BAR))[0])
        for letter, other in zip(row[:length] - first, row[length + 1 : 2 * length + 1] - first, strict=True):
            count = hits[bool(letter in hard)]
            count[0], count[1] = count[0] + (other == right[letter]), count[1] + 1
    assert len(hard) == HARD
    assert abs(hits[True][0] / hits[True][1] - RIGHT_HARD) < 0.03 and hits[False][0] / hits[False][1] > 0.98
