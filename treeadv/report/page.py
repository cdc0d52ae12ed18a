"""Builds self-contained HTML pages, without external scripts, fonts, pictures or styles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from xml.etree.ElementTree import Element

from treeadv.forest import Verdict
from treeadv.report.markup import add, element, html
from treeadv.report.picture import Picture, elided, signed
from treeadv.report.style import COLOURS, PAGE, SCRIPT, TREE
from treeadv.report.tree import tree_svg

LEAF_PIECES = 1 << 18  # largest number of tokens of all leaves of a forest that a page shows as text


def forests_page(title: str, pictures: Sequence[Picture]) -> str:
    """Return a page that shows each forest as a tree and the full text of its leaves."""
    root, main = page(title)
    add(main, "h1", title)
    add(
        main,
        "p",
        f"{len(pictures)} forests. Hover a token for its probability, entropy and policy version.",
        class_="soft",
    )
    for p in pictures:
        main.append(forest_article(p))
    return finish(root)


def page(title: str) -> tuple[Element, Element]:
    """Return an empty page as (document, its <main>)."""
    root = element("html", lang="en")
    head = add(root, "head")
    add(head, "meta", charset="utf-8")
    add(head, "meta", name="viewport", content="width=device-width, initial-scale=1")
    add(head, "title", title)
    add(head, "style", COLOURS + PAGE + TREE)
    return root, add(add(root, "body"), "main")


def finish(root: Element) -> str:
    """Add the script and return the text of the page."""
    body = root.find("body")
    assert body is not None
    add(body, "script", SCRIPT)
    return html(root)


def forest_article(p: Picture, heading: str = "") -> Element:
    """Return an article about one forest: facts, a drawing, and a table of its leaves with their full text.

    The table also serves readers who cannot see the drawing."""
    article = element("article", class_="card")
    add(article, "h3", heading or f"Forest {p.forest.forest_id}")
    add(article, "p", p.summary(), class_="soft")
    if p.forest.gold:
        add(add(article, "p", "Gold answer "), "code", p.forest.gold)
    scroll = add(article, "div", class_="scroll", tabindex="0", role="region", aria_label="drawing, scrolls sideways")
    scroll.append(tree_svg(p))
    details = add(article, "details")
    add(details, "summary", f"The {p.forest.leaves} leaves as text")
    _leaf_table(details, p)
    return article


def _leaf_table(parent: Element, p: Picture) -> None:
    body = table(parent, ("Leaf", "Verdict", "Advantage", "Tokens", "Text"), numeric=(0, 2, 3))
    for (leaf, s), (tokens, text) in zip(enumerate(p.forest.leaf_segment), leaf_texts(p), strict=True):
        row = add(body, "tr")
        add(row, "td", str(leaf), class_="n")
        verdict = Verdict(int(p.forest.verdict[leaf])).name.lower()
        cell = add(row, "td")
        add(cell, "span", p.leaf_note(leaf), class_=f"badge {verdict}")
        if p.forest.detail and p.forest.detail[leaf]:
            add(cell, "div", p.forest.detail[leaf], class_="soft")
        add(row, "td", "" if p.advantage is None else signed(p.advantage[s]), class_="n")
        add(row, "td", str(tokens), class_="n")
        add(add(row, "td"), "pre", text)


def leaf_texts(p: Picture) -> Iterator[tuple[int, str]]:
    """Yield (number of tokens, text) of each leaf, from the root to its end. If the texts of all leaves together have
    more than `LEAF_PIECES` tokens, the middle of each long text is omitted."""
    limit = max(64, LEAF_PIECES // p.forest.leaves)
    path: list[str] = []
    for s, above in enumerate(p.forest.offset):
        del path[above:]
        path += p.pieces[s]
        if p.forest.children[s]:
            continue
        head, tail = elided(len(path), limit)
        left_out = len(path) - len(head) - len(tail)
        mark = [f"\n… {left_out} tokens left out …\n"] if left_out else []
        shown = [*path[: len(head)], *mark, *path[len(path) - len(tail) :]]
        yield len(path), "".join(shown).replace("⏎", "")


def table(parent: Element, heads: Sequence[str], numeric: Sequence[int] = ()) -> Element:
    """Append a table with a head row and return its body."""
    made = add(add(parent, "div", class_="scroll", tabindex="0"), "table")
    row = add(add(made, "thead"), "tr")
    for i, head in enumerate(heads):
        add(row, "th", head, scope="col", class_="n" if i in numeric else "")
    return add(made, "tbody")
