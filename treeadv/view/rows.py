"""The facts that the list of forests shows of each forest. They come from the journal and from the forest."""

from __future__ import annotations

import zlib
from collections import Counter
from dataclasses import asdict, dataclass

from treeadv.forest import Finish, Forest, Verdict
from treeadv.jsonl import JsonObject
from treeadv.report.picture import Numbers, Vocabulary
from treeadv.visible import visible

MAX_PROMPT = 4000  # characters of a prompt in the list; the middle of a longer prompt is left out


@dataclass(frozen=True, slots=True, kw_only=True)
class ForestRow:
    """One attempt at a prompt, from the journal. `key` is unique in its source.

    `state` is a state of the ledger, "reissued", or "file" for a forest of a file. `step` is the optimizer step that
    took the forest. `place` is the position of the forest in this step, counted from 0. Both are None until a step
    takes the forest. `reward` is the mean over the leaves. `note` says why the forest was dropped, or why it cannot be
    shown."""

    key: str
    forest_id: str
    draw: int
    attempt: int
    state: str
    step: int | None = None
    place: int | None = None
    leaves: int | None = None
    tokens: int | None = None
    versions: tuple[int, int] | None = None  # oldest and newest policy version of the tokens
    reward: float | None = None
    note: str = ""
    readable: bool = False  # whether the forest is stored


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """The facts that the list shows of a forest in addition to its row.

    `fault` says why the forest cannot be read. With a `fault` the other fields have no meaning. `longest` and
    `shortest` are numbers of tokens of a leaf from the root to its end."""

    prompt_key: str = ""
    prompt: str = ""
    gold: str = ""
    verdicts: dict[str, int] | None = None  # leaves by verdict
    rewards: tuple[float, float] | None = None  # smallest and largest reward of the judged leaves
    longest: int = 0
    shortest: int = 0
    cut: int = 0  # leaves that reached the token limit
    trees: int = 0
    sharing: float = 0.0
    entropy: float = 0.0  # mean entropy of the tokens in nats
    fault: str = ""


def facts_of(forest: Forest, vocabulary: Vocabulary | Numbers) -> Facts:
    """Return the facts that the list shows of a forest."""
    ends = (forest.offset + forest.lengths)[forest.leaf_segment]
    judged = forest.reward[forest.judged]
    verdicts = Counter(Verdict(int(v)).name.lower() for v in forest.verdict)
    prompt = visible(vocabulary.text(forest.prompt.tolist()), newline="\n")
    return Facts(
        prompt_key=prompt_key(forest),
        prompt=_middle_out(prompt),
        gold=visible(forest.gold),
        verdicts=dict(sorted(verdicts.items(), key=lambda item: Verdict[item[0].upper()])),
        rewards=(float(judged.min()), float(judged.max())) if len(judged) else None,
        longest=int(ends.max()),
        shortest=int(ends.min()),
        cut=int((forest.finish == Finish.LENGTH).sum()),
        trees=forest.trees,
        sharing=forest.sharing,
        entropy=float(forest.entropy.mean()),
    )


def prompt_key(forest: Forest) -> str:
    """Return a short hash of the prompt's tokens. Forests with equal hashes have the same prompt."""
    return f"{zlib.crc32(forest.prompt.tobytes()):08x}"


def to_json(row: ForestRow, facts: Facts | None) -> JsonObject:
    """Return the row with its facts. The prompt is left out, because many rows share a prompt."""
    out = asdict(row)
    if facts is not None:
        out["facts"] = {k: v for k, v in asdict(facts).items() if k != "prompt"}
    return out


def _middle_out(text: str) -> str:
    if len(text) <= MAX_PROMPT:
        return text
    half = MAX_PROMPT // 2
    return f"{text[:half]}\n… {len(text) - 2 * half} characters left out …\n{text[-half:]}"
