"""What a drawn forest shows, whatever draws it: the text of tokens, the advantage of segments, the ends of the colour
scales."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from treeadv.errors import BadInput, one_line
from treeadv.forest import UNJUDGED, Finish, Forest, Verdict
from treeadv.visible import visible

ENTROPY_LEVELS = 6  # shades from nothing to the top of the scale
ADVANTAGE_LEVELS = 4  # shades on each side of zero
CONTEXT = 16  # tokens before a text that settle how it begins: no character is cut into so many
NO_TEXT = "\N{REPLACEMENT CHARACTER}"  # shown for tokens that form no character
MARKS = {
    Verdict.UNGRADED: "·", Verdict.VERIFIED: "✓", Verdict.WRONG: "✗", Verdict.UNPARSED: "?",
    Verdict.TIMEOUT: "⧖", Verdict.CRASH: "⚠", Verdict.REFUSED: "⊘", Verdict.ABORTED: "⌿",
}  # fmt: skip


class Vocabulary:
    """Token ids to text, from the tokenizer.json of a model folder (read by `tokenizers`: no torch, no
    transformers)."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        path = folder / "tokenizer.json"
        if not path.is_file():
            raise BadInput(f"{path}: no such tokenizer; name the model that drew the tokens with --model DIR")
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as e:  # tokenizers raises no narrower type
            raise BadInput(f"{path}: not a tokenizer ({one_line(e)})") from e

    def pieces(self, before: Sequence[int], tokens: Sequence[int]) -> list[str]:
        """The text that each of `tokens` adds after `before`, whose last `CONTEXT` tokens are enough. Of a character
        cut into several tokens the last one carries it."""
        from tokenizers.decoders import DecodeStream

        # Stepped from before the tokens: a stream that is opened in the middle of a character repeats what came before.
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


class Numbers:
    """Shows token ids as numbers, where the vocabulary is missing."""

    def pieces(self, before: Sequence[int], tokens: Sequence[int]) -> list[str]:
        return [f"{t} " for t in tokens]

    def text(self, tokens: Sequence[int]) -> str:
        return " ".join(str(t) for t in tokens)


@dataclass(frozen=True, slots=True)
class Picture:
    """A forest with what its drawing needs. S segments, L leaves; `advantage` [S] is None for a forest that is not
    graded."""

    forest: Forest
    prompt: str
    pieces: tuple[tuple[str, ...], ...]  # [S] the visible text of each token
    advantage: npt.NDArray[np.floating] | None
    top_entropy: float  # nats, the end of the colour scale
    top_advantage: float  # the same, on both sides of zero

    def entropy_level(self, token: int) -> int:
        """0 (certain) to ENTROPY_LEVELS - 1, in equal steps up to `top_entropy`."""
        share = float(self.forest.entropy[token]) / self.top_entropy if self.top_entropy else 0.0
        return min(ENTROPY_LEVELS - 1, int(share * ENTROPY_LEVELS))

    def advantage_level(self, segment: int) -> int:
        """-ADVANTAGE_LEVELS (worst) to ADVANTAGE_LEVELS (best); 0 is no advantage, or none known."""
        if self.advantage is None or not self.top_advantage:
            return 0
        share = float(self.advantage[segment]) / self.top_advantage
        return int(np.sign(share) * np.ceil(round(min(1.0, abs(share)) * ADVANTAGE_LEVELS, 6)))

    def token_note(self, segment: int, i: int) -> str:
        """Return probability, entropy and version of the i-th token of a segment, on one line."""
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
        """Verdict, reward and, where it did not stop by itself, how the leaf ended."""
        f = self.forest
        verdict = Verdict(int(f.verdict[leaf]))
        reward = "" if verdict in UNJUDGED else f" {f.reward[leaf]:g}"
        end = {Finish.STOP: "", Finish.LENGTH: ", cut at the limit", Finish.ABORT: ", lost"}[
            Finish(int(f.finish[leaf]))
        ]
        return f"{MARKS[verdict]} {verdict.name.lower()}{reward}{end}"

    def summary(self) -> str:
        """Sizes and circumstances of the forest, on one line."""
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
    """Prepare a forest for drawing. `advantage` [S], one a segment, or None."""
    pieces = []
    path = forest.prompt.tolist()  # prompt and tokens above a segment
    for above, (a, b) in zip(forest.offset, pairwise(forest.start), strict=True):
        del path[len(forest.prompt) + above :]
        tokens = forest.token[a:b].tolist()
        pieces.append(tuple(map(drawn_text, vocabulary.pieces(path[-CONTEXT:], tokens))))
        path += tokens
    top = float(np.abs(advantage).max()) if advantage is not None else 0.0
    return Picture(
        forest, drawn_text(vocabulary.text(forest.prompt.tolist())), tuple(pieces), advantage,
        top_entropy=float(np.quantile(forest.entropy, 0.98)), top_advantage=top,
    )  # fmt: skip


def drawn_text(text: str) -> str:
    """Text in which a line break shows as a symbol and breaks the line, and nothing else is invisible."""
    return visible(text, newline="⏎\n")


def signed(value: float) -> str:
    """+0.58, -1.00 or 0, the minus sign as wide as the plus sign."""
    return "0" if abs(value) < 0.005 else f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")


def elided(count: int, limit: int) -> tuple[range, range]:
    """Which of `count` things to show when `limit` fit: the first and the last ones (the second range is empty if all
    fit)."""
    if count <= limit:
        return range(count), range(count, count)
    head = limit // 2
    return range(head), range(count - (limit - head), count)
