"""Encodes a forest as JSON for the page. Segments have texts. Numbers of tokens are base64 of little-endian arrays."""

from __future__ import annotations

import base64
from itertools import groupby, pairwise

import numpy as np
import numpy.typing as npt

from treeadv.errors import BadForest, BadInput
from treeadv.forest import Finish, Floats, Forest, Verdict
from treeadv.jsonl import JsonObject
from treeadv.learning.advantage import advantages
from treeadv.presets import AdvantageSpec
from treeadv.report.picture import Numbers, Vocabulary, drawn_text
from treeadv.view.reading import part_read
from treeadv.view.sources import Source
from treeadv.visible import visible

MILLI_MAX = 65_535  # largest number of thousandths of a nat in two bytes


def encode_row(source: Source, key: str) -> JsonObject:
    """Return the JSON of the forest of a row of `source`. Raises `BadInput` for a forest that cannot be read."""
    try:
        return forest_json(source.forest(key), source.vocabulary, source.advantage, source.learner_log_probs(key))
    except BadForest as e:
        raise BadInput(str(e)) from e


def forest_json(
    f: Forest, vocabulary: Vocabulary | Numbers, spec: AdvantageSpec, learner: Floats | None = None
) -> JsonObject:
    """Return the data of a forest that the page shows. `learner` [T] is log pi of the learner, if the run kept it.

    `text` [S] is the text of each segment. `size` [T] (uint16) is the length of each token's part of this text in
    UTF-16 units. `surprise` [T] (uint16) is -log p of each token, and `entropy` [T] (uint16) its entropy. Both are in
    thousandths of a nat. `id` [T] is uint32. `version` lists runs of tokens with the same version as [version, number
    of tokens]. `mismatch` [T] (float32) is log pi of the learner minus log pi of the engine. `advantage` [S] is None
    for a forest that is not graded.

    Raises `BadForest` if `learner` has another length."""
    if learner is not None and len(learner) != f.tokens:
        raise BadForest(f.forest_id, f"log_probs/ has {len(learner)} tokens of it, the payload {f.tokens}")
    advantage, weight = advantages(f, spec) if f.graded else (None, None)
    texts, sizes = _texts(f, vocabulary)
    return {
        "forest_id": visible(f.forest_id),
        "prompt_id": visible(f.prompt_id),
        "prompt": visible(vocabulary.text(f.prompt.tolist()), newline="\n"),
        "prompt_tokens": len(f.prompt),
        "gold": visible(f.gold, newline="\n"),
        "verifier": visible(f.verifier),
        "meta": visible(f.meta, newline="\n"),
        "rule": visible(f.rule),
        "predictable": f.predictable,
        "tau": _number(f.tau),
        "temperature": _number(f.temperature),
        "parent": f.parent.tolist(),
        "tree": f.tree.tolist(),
        "arity": f.arity.tolist(),
        "length": f.lengths.tolist(),
        "advantage": None if advantage is None else [_number(x) for x in advantage],
        "weight": None if weight is None else [_number(x) for x in weight],
        "text": texts,
        "size": _packed(np.array(sizes), "<u2"),
        "id": _packed(f.token, "<u4"),
        "surprise": _milli(-f.logprob.astype(np.float64)),
        "entropy": _milli(f.entropy.astype(np.float64)),
        "version": [[int(v), len(list(same))] for v, same in groupby(f.version.tolist())],
        "mismatch": None if learner is None else _packed(learner - f.logprob, "<f4"),
        "top_entropy": float(np.quantile(f.entropy, 0.98)),
        "expanded_tokens": f.expanded_tokens,
        "leaves": [_leaf(f, n, vocabulary) for n in range(f.leaves)],
    }


def _texts(f: Forest, vocabulary: Vocabulary | Numbers) -> tuple[list[str], list[int]]:
    texts, sizes = [], []
    path = f.prompt.tolist()  # prompt and tokens above a segment, because a fork may cut a character
    for above, (a, b) in zip(f.offset, pairwise(f.start), strict=True):
        del path[len(f.prompt) + above :]
        tokens = f.token[a:b].tolist()
        pieces = [drawn_text(piece) for piece in vocabulary.pieces(path, tokens)]
        texts.append("".join(pieces))
        sizes += [len(piece) if piece.isascii() else len(piece.encode("utf-16-le")) // 2 for piece in pieces]
        path += tokens
    return texts, sizes


def _leaf(f: Forest, leaf: int, vocabulary: Vocabulary | Numbers) -> JsonObject:
    return {
        "segment": int(f.leaf_segment[leaf]),
        "verdict": Verdict(int(f.verdict[leaf])).name.lower(),
        "reward": _number(f.reward[leaf]),
        "finish": Finish(int(f.finish[leaf])).name.lower(),
        "detail": visible(f.detail[leaf], newline="\n") if f.detail else "",
        "read": part_read(f, leaf, vocabulary),
    }


def _number(value: float) -> float | None:
    """Return a number that JSON can hold, or None for NaN and infinities."""
    return round(float(value), 6) if np.isfinite(value) else None


def _milli(values: npt.NDArray[np.float64]) -> str:
    return _packed(np.clip(np.rint(np.nan_to_num(values) * 1000), 0, MILLI_MAX), "<u2")


def _packed(values: npt.NDArray[np.generic], kind: str) -> str:
    return base64.b64encode(values.astype(kind).tobytes()).decode("ascii")
