"""Builds elements of HTML and SVG. All text is escaped here, so text of any origin gives a well-formed document."""

from __future__ import annotations

from xml.etree.ElementTree import Element, SubElement, tostring

from treeadv.visible import visible

SVG = "http://www.w3.org/2000/svg"


def add(parent: Element, tag: str, text: str | None = None, **attributes: object) -> Element:
    """Append an element and return it.

    In attribute names `_` stands for `-`, and `class_` for `class`. Floats are rounded to 0.1."""
    made = SubElement(parent, tag, _names(attributes))
    made.text = text
    return made


def element(tag: str, **attributes: object) -> Element:
    """Return an element without a parent. For attributes see `add`."""
    return Element(tag, _names(attributes))


def html(root: Element) -> str:
    """Return a whole HTML document."""
    _show(root)
    return "<!doctype html>\n" + tostring(root, encoding="unicode", method="html") + "\n"


def svg(root: Element, style: str) -> str:
    """Return the text of a standalone SVG file that contains its style."""
    root.set("xmlns", SVG)
    sheet = element("style")
    sheet.text = style
    root.insert(0, sheet)
    _show(root)
    return tostring(root, encoding="unicode", method="xml") + "\n"


def _names(attributes: dict[str, object]) -> dict[str, str]:
    return {
        k.rstrip("_").replace("_", "-"): f"{v:.1f}" if isinstance(v, float) else str(v) for k, v in attributes.items()
    }


def _show(root: Element) -> None:
    """Replace the characters that a reader cannot see by visible text. XML allows no control character, surrogate or
    U+FFFE."""
    for e in root.iter():
        e.text, e.tail = (visible(text, newline="\n") if text else text for text in (e.text, e.tail))
        for name, value in e.attrib.items():
            e.set(name, visible(value))
