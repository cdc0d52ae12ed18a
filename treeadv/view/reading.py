"""Finds the part of a leaf that its verifier read."""

from __future__ import annotations

from treeadv.errors import BadInput
from treeadv.forest import Finish, Forest
from treeadv.report.picture import Numbers, Vocabulary
from treeadv.rewards.judgement import Answer
from treeadv.rewards.verifiers.registry import find_verifier, is_built_in
from treeadv.visible import visible


def part_read(f: Forest, leaf: int, vocabulary: Vocabulary | Numbers) -> str | None:
    """Return the part of the leaf's text that a verifier of this package compares, or "" if the verifier finds none.

    Returns None for another verifier, whose code does not run here. Returns None for a verifier that reads the whole
    text, for a lost leaf, and without a tokenizer."""
    if isinstance(vocabulary, Numbers) or not is_built_in(f.verifier) or f.finish[leaf] == Finish.ABORT:
        return None
    response = vocabulary.response(f.leaf_tokens(leaf).tolist())
    try:
        compared = find_verifier(f.verifier).read_part(
            Answer(response=response, gold=f.gold, verifier=f.verifier, meta=f.meta)
        )
    except BadInput:  # an option or meta that no verifier of this release accepts
        return None
    return None if compared is None else visible(compared, newline="\n")
