"""`python -m benchmarks.cipher DIR`: makes the model and the problems of the study docs/results/cipher.yaml.

A prompt is a word of 8 to 16 random letters, such as `kqabvmzt|`. The answer replaces each letter by the letter of a
fixed random substitution. Only an answer whose letters are all right is rewarded. The pretraining text mostly has a
wrong letter where the letter of the prompt is one of the `HARD` ones, so the policy must find the right letter by
exploration. Unlike operator-tables, answers differ in length, an error does not change later letters, and no later
letter repairs an error. DIR gets `model`, `train.jsonl`, `development.jsonl` and `test.jsonl`.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from string import ascii_lowercase

import numpy as np

from treeadv.command_line import local, run_command, tool_parser
from treeadv.data.model_folder import creating_folder
from treeadv.disk import replace_file
from treeadv.local.warmup import END, IGNORED, PAD, Digits, Pretraining, character_tokenizer, pretrain
from treeadv.seeds import derive

LETTERS, BAR = len(ascii_lowercase), "|"
VOCABULARY = (END, PAD, *ascii_lowercase, BAR)
SHORTEST, LONGEST = 8, 16
HARD = 8  # letters with mostly wrong replacements in the text
RIGHT_HARD, RIGHT_EASY = 0.4, 0.99  # shares of right letters in the text
SIZES = Pretraining(steps=800, batch=64)
PROBLEMS = {"train": 4000, "development": 128, "test": 400}


def substitution() -> tuple[Digits, Digits, Digits]:
    """Return the right and a wrong replacement of each letter, and the letters that are hard."""
    rng = np.random.default_rng(derive(0, "cipher"))
    right = rng.permutation(LETTERS)
    wrong = (right + rng.integers(1, LETTERS, LETTERS)) % LETTERS
    return right, wrong, rng.permutation(LETTERS)[:HARD]


def problems() -> dict[str, list[dict[str, str]]]:
    """Return the problems of each file. No word occurs twice."""
    right = substitution()[0]
    table = str.maketrans(ascii_lowercase, "".join(ascii_lowercase[i] for i in right))
    rng, seen = random.Random(derive(0, "cipher-words")), set[str]()
    out: dict[str, list[dict[str, str]]] = {}
    for name, count in PROBLEMS.items():
        out[name] = []
        while len(out[name]) < count:
            word = "".join(rng.choices(ascii_lowercase, k=rng.randint(SHORTEST, LONGEST)))
            if word not in seen:
                seen.add(word)
                out[name].append({"id": f"{name}-{word}", "problem": word + BAR, "answer": word.translate(table)})
    return out


def text_batch(batch: int, rng: np.random.Generator) -> tuple[Digits, Digits]:
    """Return (tokens, targets), both [batch, 2 * LONGEST + 2]. The loss ignores prompts and padding."""
    right, wrong, hard = substitution()
    tokens = np.full((batch, 2 * LONGEST + 2), VOCABULARY.index(PAD), np.int64)
    targets = np.full_like(tokens, IGNORED)
    for row, length in enumerate(rng.integers(SHORTEST, LONGEST + 1, batch)):
        word = rng.integers(0, LETTERS, length)
        is_right = rng.random(length) < np.where(np.isin(word, hard), RIGHT_HARD, RIGHT_EASY)
        first = VOCABULARY.index(ascii_lowercase[0])
        answer = [*(first + np.where(is_right, right[word], wrong[word])), VOCABULARY.index(END)]
        tokens[row, : 2 * length + 2] = [*(first + word), VOCABULARY.index(BAR), *answer]
        targets[row, length + 1 : 2 * length + 2] = answer
    return tokens, targets


def make(home: Path, sizes: Pretraining = SIZES) -> None:
    """Write the model and the problems into `home`."""
    rng = np.random.default_rng(derive(sizes.seed, "cipher-text"))
    model = pretrain(sizes, len(VOCABULARY), lambda: text_batch(sizes.batch, rng), lambda *_: None)
    home.mkdir(parents=True, exist_ok=True)
    with creating_folder(home / "model") as folder:
        model.save_pretrained(folder)
        character_tokenizer(VOCABULARY).save_pretrained(folder)
    for name, rows in problems().items():
        replace_file(home / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def main(argv: Sequence[str] | None = None) -> None:
    p = tool_parser("python -m benchmarks.cipher", __doc__)
    p.add_argument("home", type=local, metavar="DIR")
    make(p.parse_args(argv).home)


if __name__ == "__main__":
    sys.exit(run_command(main))
