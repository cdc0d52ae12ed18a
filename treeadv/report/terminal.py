"""Prints a forest as a tree in the terminal. Entropy shades tokens, the advantage shades segments, and leaves have
verdicts."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text
from rich.tree import Tree

from treeadv.forest import Verdict
from treeadv.report.picture import ADVANTAGE_LEVELS, ENTROPY_LEVELS, Picture, elided, signed
from treeadv.visible import visible

TOKENS = 48  # largest number of tokens of a segment; the middle of a longer segment is omitted
DEPTH = 12  # largest number of forks above a shown segment, because each fork takes four columns

# Styles of entropy levels, advantage levels and verdicts. They are legible on dark and light terminals, because every
# style with a background also sets the text colour.
_ENTROPY = ("", "#b08200", "bold #c08f00", "#1d1c19 on #b89b4e", "#1d1c19 on #d3a42a", "#1d1c19 on #f5ab00")
_ADVANTAGE = {
    -4: "white on #c23a37", -3: "#1d1c19 on #e07a77", -2: "#1d1c19 on #eba5a3", -1: "#1d1c19 on #f5d0cf",
    0: "#1d1c19 on #d4d2cc",
    1: "#1d1c19 on #cfdff7", 2: "#1d1c19 on #a3c2ef", 3: "#1d1c19 on #78a4e6", 4: "white on #2a64c4",
}  # fmt: skip
_VERDICT = {Verdict.VERIFIED: "bold green", Verdict.WRONG: "bold red", Verdict.UNGRADED: "dim"}


def forest_tree(p: Picture, tokens: int = TOKENS) -> RenderableType:
    """Return the `rich` tree of a forest. Long lines wrap below their branch.

    If a segment has more than `tokens` tokens, its middle is omitted."""
    f = p.forest
    prompt = Text(p.prompt.replace("⏎", "").strip())
    root = Tree(Group(Text("prompt", style="bold dim"), prompt, Text("")), guide_style="dim")
    nodes: dict[int, Tree] = {-1: root}
    leaf_of = {int(s): leaf for leaf, s in enumerate(f.leaf_segment)}
    for s, (parent, depth) in enumerate(zip(f.parent.tolist(), f.depth.tolist(), strict=True)):
        if depth <= DEPTH:
            nodes[s] = nodes[parent].add(_segment(p, s, leaf_of.get(s), tokens))
            if depth == DEPTH and f.children[s]:
                below = int(f.subtree_end[s]) - s - 1
                text = f"… {below} segments with {f.leaf_count[s]} leaves left out (--html and --svg show them) …"
                nodes[s].add(Text(text, style="dim italic"))
    facts = [Text(visible(f"forest {f.forest_id}"), style="bold"), Text(visible(p.summary()), style="dim")]
    if f.gold:
        facts.append(Text("gold answer ", style="dim").append(visible(f.gold), style="not dim bold"))
    return Group(*facts, Text(""), root, Padding(_legend(p), (1, 0, 0, 0)))


def _segment(p: Picture, s: int, leaf: int | None, tokens: int) -> Text:
    line = Text()
    if p.advantage is not None:
        line.append(f" {signed(p.advantage[s])} ", style=_ADVANTAGE[p.advantage_level(s)]).append(" ")
    first = int(p.forest.start[s])
    pieces = [piece.replace("\n", "") for piece in p.pieces[s]]
    head, tail = elided(len(pieces), tokens)
    for i in (*head, *tail):
        if tail and i == tail.start:
            line.append(
                f" … {len(pieces) - len(head) - len(tail)} tokens left out (--full shows them) … ", style="dim italic"
            )
        line.append(pieces[i], style=_ENTROPY[p.entropy_level(first + i)])
    if leaf is not None:
        verdict = Verdict(int(p.forest.verdict[leaf]))
        line.append("  ").append(p.leaf_note(leaf), style=_VERDICT.get(verdict, "bold yellow"))
    return line


def leaf_text(p: Picture, leaf: int, read: str | None) -> RenderableType:
    """Return the prompt and the whole text of one leaf, its verdict and the reason. `read` is the part of the text that
    the verifier compared; it is None if that part is unknown."""
    f, last = p.forest, int(p.forest.leaf_segment[leaf])
    line = Text()
    for s in f.path(last):
        for i, piece in enumerate(p.pieces[s]):
            line.append(piece.replace("⏎", ""), style=_ENTROPY[p.entropy_level(int(f.start[s]) + i)])
    verdict = Verdict(int(f.verdict[leaf]))
    facts = [("verdict", p.leaf_note(leaf), _VERDICT.get(verdict, "bold yellow"))]
    if f.detail and f.detail[leaf]:
        facts.append(("reason", visible(f.detail[leaf]), ""))
    if read is not None:
        facts.append(("it read", read or "nothing", ""))
    facts += [("gold answer", visible(f.gold), "")] * bool(f.gold)
    if p.advantage is not None:
        facts.append(("advantage", signed(p.advantage[last]), _ADVANTAGE[p.advantage_level(last)]))
    lines = [Text(f"{name:<12}", style="dim").append(shown, style=style or "not dim") for name, shown, style in facts]
    prompt = Text(p.prompt.replace("⏎", "").strip(), style="dim")
    return Group(
        Text(visible(f"forest {f.forest_id}, leaf {leaf}"), style="bold"), Text(""), prompt, line, Text(""), *lines
    )


def _legend(p: Picture) -> Text:
    line = Text("entropy   ", style="dim")
    for level in range(ENTROPY_LEVELS):
        line.append(" · ", style=_ENTROPY[level])
    line.append(f" 0 to {p.top_entropy:.2f} nats", style="dim")
    if p.advantage is not None:
        line.append("\nadvantage ", style="dim")
        for level in range(-ADVANTAGE_LEVELS, ADVANTAGE_LEVELS + 1):
            line.append("  ", style=_ADVANTAGE[level])
        line.append(f" {signed(-p.top_advantage)} to {signed(p.top_advantage)}", style="dim")
    return line
