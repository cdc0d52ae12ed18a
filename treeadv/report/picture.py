"""Prepares the data of a drawn forest for all output formats: texts of tokens, advantages of segments, ends of colour
scales."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from treeadv.data.tokenizer_file import FILE, open_tokenizer
from treeadv.errors import BadInput
from treeadv.forest import UNJUDGED, Finish, Forest, Verdict
from treeadv.visible import visible

ENTROPY_LEVELS = 6  # number of shades from zero to the top of the scale
ADVANTAGE_LEVELS = 4  # number of shades on each side of zero
CONTEXT = 16  # tokens before a text that determine its first character: no character has so many tokens
NO_TEXT = "\N{REPLACEMENT CHARACTER}"  # shown for tokens that form no character
MARKS = {
    Verdict.UNGRADED: "·", Verdict.VERIFIED: "✓", Verdict.WRONG: "✗", Verdict.UNPARSED: "?",
    Verdict.TIMEOUT: "⧖", Verdict.CRASH: "⚠", Verdict.REFUSED: "⊘", Verdict.ABORTED: "⌿",
}  # fmt: skip


class Vocabulary:
    """A converter from token ids to text with the tokenizer.json of a model folder, without torch and transformers."""

    def __init__(self, folder: Path) -> None:
        if not (folder / FILE).is_file():
            raise BadInput(f"{folder / FILE}: no such tokenizer; name the model that drew the tokens with --model DIR")
        self._tokenizer = open_tokenizer(folder)

    def pieces(self, before: Sequence[int], tokens: Sequence[int]) -> list[str]:
        """Return the text that each of `tokens` adds after `before`, of which the last `CONTEXT` tokens are enough. If
        a character has several tokens, the last of them adds the character."""
        from tokenizers.decoders import DecodeStream

        # The stream starts before the tokens, because a stream that starts inside a character repeats earlier text.
        context = list(before[-CONTEXT:])
        texts: list[str] = []
        waiting = 0  # tokens since the last text; a stream decodes all of them again at each step
        stream = DecodeStream(skip_special_tokens=False)
        for t in (*context, *tokens):
            text = stream.step(self._tokenizer, int(t)) or ""
            waiting = 0 if text else waiting + 1
            if waiting == CONTEXT:
                text, waiting, stream = NO_TEXT, 0, DecodeStream(skip_special_tokens=False)
            texts.append(text)
        return texts[len(context) :]

    def text(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode([int(t) for t in tokens], skip_special_tokens=False)

    def response(self, tokens: Sequence[int]) -> str:
        """Return the text without special tokens, as verifiers get it."""
        return self._tokenizer.decode([int(t) for t in tokens], skip_special_tokens=True)


class Numbers:
    """A converter that shows token ids as numbers, for models without a vocabulary."""

    def pieces(self, before: Sequence[int], tokens: Sequence[int]) -> list[str]:
        return [f"{t} " for t in tokens]

    def text(self, tokens: Sequence[int]) -> str:
        return " ".join(str(t) for t in tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A forest with the data for its drawing.

    `advantage` [S] is None for a forest that is not graded."""

    forest: Forest
    prompt: str
    pieces: tuple[tuple[str, ...], ...]  # [S] the visible text of each token
    advantage: npt.NDArray[np.floating] | None
    top_entropy: float  # the end of the colour scale of entropies in nats
    top_advantage: float  # the end of the colour scale of advantages, on both sides of zero

    def entropy_level(self, token: int) -> int:
        """Return the level of a token's entropy: 0 (certain) to ENTROPY_LEVELS - 1, in equal steps to `top_entropy`."""
        share = float(self.forest.entropy[token]) / self.top_entropy if self.top_entropy else 0.0
        return min(ENTROPY_LEVELS - 1, int(share * ENTROPY_LEVELS))

    def advantage_level(self, segment: int) -> int:
        """Return the level of a segment's advantage: -ADVANTAGE_LEVELS (worst) to ADVANTAGE_LEVELS (best).

        The level is 0 for an advantage of 0 and for an unknown advantage."""
        if self.advantage is None or not self.top_advantage:
            return 0
        share = float(self.advantage[segment]) / self.top_advantage
        return int(np.sign(share) * np.ceil(round(min(1.0, abs(share)) * ADVANTAGE_LEVELS, 6)))

    def token_note(self, segment: int, i: int) -> str:
        """Return the probability, the entropy and the policy version of the i-th token of a segment, on one line."""
        f = self.forest
        t = int(f.start[segment]) + i
        return (
            f"{self.pieces[segment][i]!r} (id {f.token[t]}): p {np.exp(f.logprob[t]):.3f}, "
            f"entropy {f.entropy[t]:.2f} nats, version {f.version[t]}"
        )

    def segment_note(self, segment: int) -> str:
        k = int(self.forest.leaf_count[segment])
        size = f"{int(self.forest.lengths[segment])} tokens" + (f", {k} leaves below" if k > 1 else "")
        return size if self.advantage is None else f"advantage {signed(self.advantage[segment])}, {size}"

    def leaf_note(self, leaf: int) -> str:
        """Return the verdict and the reward of a leaf. If the leaf did not end with a stop token, the text also has the
        reason of its end."""
        f = self.forest
        verdict = Verdict(int(f.verdict[leaf]))
        reward = "" if verdict in UNJUDGED else f" {f.reward[leaf]:g}"
        end = {Finish.STOP: "", Finish.LENGTH: ", cut at the limit", Finish.ABORT: ", lost"}[
            Finish(int(f.finish[leaf]))
        ]
        return f"{MARKS[verdict]} {verdict.name.lower()}{reward}{end}"

    def summary(self) -> str:
        """Return the sizes, the fork rule and the policy versions of the forest, on one line."""
        f = self.forest
        versions = f"version {f.oldest_version}" + (
            f" to {f.newest_version}" if f.newest_version > f.oldest_version else ""
        )
        tau = "" if np.isnan(f.tau) else f" above {f.tau:.2f} nats"
        biased = "" if f.predictable else " (biased)"
        return (
            f"{f.leaves} leaves in {f.trees} trees, {f.segments} segments; "
            f"{f.tokens} tokens instead of {f.expanded_tokens} "
            f"({f.sharing:.0%} shared); forks by {f.rule}{tau}{biased}; policy {versions}"
        )


def picture(forest: Forest, vocabulary: Vocabulary | Numbers, advantage: npt.NDArray[np.floating] | None) -> Picture:
    """Prepare a forest for drawing. `advantage` is [S] or None."""
    pieces = []
    path = forest.prompt.tolist()  # prompt and tokens above a segment
    for above, (a, b) in zip(forest.offset, pairwise(forest.start), strict=True):
        del path[len(forest.prompt) + above :]
        tokens = forest.token[a:b].tolist()
        pieces.append(tuple(map(drawn_text, vocabulary.pieces(path[-CONTEXT:], tokens))))
        path += tokens
    top = float(np.abs(advantage).max()) if advantage is not None else 0.0
    return Picture(
        forest=forest, prompt=drawn_text(vocabulary.text(forest.prompt.tolist())), pieces=tuple(pieces),
        advantage=advantage, top_entropy=float(np.quantile(forest.entropy, 0.98)), top_advantage=top,
    )  # fmt: skip


def drawn_text(text: str) -> str:
    """Return text without invisible characters, except for line breaks. A line break is shown as a symbol and breaks
    the line."""
    return visible(text, newline="⏎\n")


def signed(value: float) -> str:
    """Format a number as +0.58, -1.00 or 0. The minus sign is as wide as the plus sign."""
    return "0" if abs(value) < 0.005 else f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")


def elided(count: int, limit: int) -> tuple[range, range]:
    """Return the ranges of the first and last of `count` items to show if only `limit` items fit.

    The second range is empty if all items fit."""
    if count <= limit:
        return range(count), range(count, count)
    head = limit // 2
    return range(head), range(count - (limit - head), count)
