"""Opens and checks the tokenizer of a model folder, without torch and transformers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from treeadv.errors import BadInput, one_line
from treeadv.jsonl import JsonMapping, read_object

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FILE = "tokenizer.json"
SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
SPARE = 1024  # ids that a tokenizer may have beyond its model: some have tokens, as of an image, that it never draws
_REMEDY = "copy or download the model again"


def open_tokenizer(folder: Path) -> Tokenizer:
    """Return the tokenizer of a model folder. Raises `BadInput` for a missing or damaged tokenizer.json."""
    from tokenizers import Tokenizer

    path = folder / FILE
    if not path.is_file():
        raise BadInput(f"{path}: no such tokenizer; give the folder of a model with a {FILE}")
    read_object(path)  # its errors name the place, and those of tokenizers do not always
    try:
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.decode(tokenizer.encode("0").ids)  # some damage appears only at the first text
    except Exception as e:  # tokenizers raises no narrower type
        raise BadInput(f"{path}: not a tokenizer ({one_line(e)}); {_REMEDY}") from e
    return tokenizer


def check_tokenizer(folder: Path, config: JsonMapping) -> None:
    """Raise `BadInput` for a missing or damaged file of a tokenizer, and for the tokenizer of another model.

    `config` is the content of config.json. transformers prints every free id below the largest id of a tokenizer, so a
    damaged id must be found before transformers loads the tokenizer."""
    tokenizer = open_tokenizer(folder)
    for name in SETTINGS:
        if (folder / name).is_file():
            read_object(folder / name)
    size, ids = vocabulary_size(config), tokenizer.get_vocab()
    token = max(ids, key=ids.__getitem__, default=None)
    if size is not None and token is not None and ids[token] >= size + SPARE:
        raise BadInput(
            f"{folder / FILE}: the token {token!a} has the id {ids[token]}, but the vocab_size of config.json is"
            f" {size}; {_REMEDY}"
        )


def vocabulary_size(config: JsonMapping) -> int | None:
    """Return `vocab_size` of the content of a config.json; None if it names no number."""
    text = config.get("text_config")  # a model of text and images has it one level deeper
    size = config.get("vocab_size", text.get("vocab_size") if isinstance(text, dict) else None)
    return size if type(size) is int else None
