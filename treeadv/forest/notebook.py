"""Writes a forest as a small piece of HTML. A notebook shows it in place of the repr."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from treeadv.forest.labels import Finish, Verdict
from treeadv.forest.structure import ForestArrays
from treeadv.visible import visible

SEGMENTS = 200  # most segments of a forest that are shown
TOKENS = 24  # most tokens of a segment that are shown, half of them from its end
TEXT = 200  # most characters of a text that are shown
_COLOUR = {Verdict.VERIFIED: "#0f7a3d", Verdict.WRONG: "#b3261e", Verdict.UNGRADED: "#67645c"}
_MONO = "font-family:ui-monospace,monospace;font-size:12px"


def notebook_html(f: ForestArrays) -> str:
    """Return the facts and the trees of a forest as HTML. The reader can fold the trees.

    All texts are escaped. The HTML needs no script, style sheet or network."""
    rewards = f"mean reward {float(f.reward[f.judged].mean()):.3g}" if f.graded and f.judged.any() else "not graded"
    sizes = f"{f.trees} trees, {f.segments} segments, {f.leaves} leaves, {f.tokens} tokens"
    facts = f"{sizes}, sharing {f.sharing:.0%}, {rewards}"
    gold = f"<div>gold answer: <code>{_text(f.gold)}</code></div>" if f.gold else ""
    more = f.segments - SEGMENTS
    cut = f"<div><i>{more} more segments are not shown</i></div>" if more > 0 else ""
    return (
        f'<div style="font-size:13px"><b>Forest {_text(f.forest_id) or "without id"}</b><div>{facts}</div>{gold}'
        f"{''.join(_trees(f))}{cut}</div>"
    )


def _trees(f: ForestArrays) -> Iterator[str]:
    """Yield the elements of the segments in their order. The element of a parent contains those of its children."""
    leaf_of = {int(s): leaf for leaf, s in enumerate(f.leaf_segment)}
    last = -1  # depth of the element that was opened last
    for s in range(min(f.segments, SEGMENTS)):
        depth = int(f.depth[s])
        yield "</details>" * (last - depth + 1)
        last = depth
        size = f"{int(f.lengths[s])} tokens"
        below = _leaf(f, leaf_of[s]) if s in leaf_of else f"{int(f.leaf_count[s])} leaves below"
        # A browser does not indent the content of <details>, so a margin indents it.
        yield (
            f'<details open style="margin-left:{14 if depth else 0}px"><summary><span style="{_MONO}">{_tokens(f, s)}'
            f"</span> <small>{size}, {below}</small></summary>"
        )
    yield "</details>" * (last + 1)


def _leaf(f: ForestArrays, leaf: int) -> str:
    verdict = Verdict(int(f.verdict[leaf]))
    reward = f" {float(f.reward[leaf]):g}" if f.judged[leaf] else ""
    end = {Finish.STOP: "", Finish.LENGTH: ", cut at the limit", Finish.ABORT: ", lost"}[Finish(int(f.finish[leaf]))]
    detail = f" ({_text(f.detail[leaf])})" if f.detail and f.detail[leaf] else ""
    return f'<b style="color:{_COLOUR.get(verdict, "#8a5a00")}">{verdict.name.lower()}{reward}{end}</b>{detail}'


def _tokens(f: ForestArrays, s: int) -> str:
    ids = f.token[f.start[s] : f.start[s + 1]].tolist()
    half = TOKENS // 2
    shown = ids if len(ids) <= TOKENS else [*ids[:half], "…", *ids[-half:]]
    return " ".join(map(str, shown))


def _text(text: str) -> str:
    return escape(visible(text if len(text) <= TEXT else text[:TEXT] + "…"))
