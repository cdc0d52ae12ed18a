"""What a verifier read of a leaf."""

from __future__ import annotations

from treeadv.errors import BadInput
from treeadv.forest import Finish, Forest
from treeadv.report.picture import Numbers, Vocabulary
from treeadv.rewards.judgement import Answer
from treeadv.rewards.verifiers.registry import find_verifier, is_built_in
from treeadv.visible import visible


def part_read(f: Forest, leaf: int, vocabulary: Vocabulary | Numbers) -> str | None:
    """Return the part of the leaf's text that a verifier of this package compares, "" if it finds none.

    None for another verifier, whose code does not run here, and for one that reads the whole text."""
    if isinstance(vocabulary, Numbers) or not is_built_in(f.verifier) or f.finish[leaf] == Finish.ABORT:
        return None
    response = vocabulary.response(f.leaf_tokens(leaf).tolist())
    try:
        part = find_verifier(f.verifier).read_part(Answer(response, f.gold, f.verifier, f.meta))
    except BadInput:  # an option or meta that no verifier of this release accepts
        return None
    return None if part is None else visible(part, newline="\n")
