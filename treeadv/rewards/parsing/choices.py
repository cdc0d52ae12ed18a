"""The letters of a multiple choice that a line chooses."""

from __future__ import annotations

import re

_STYLE = re.compile(r"\\(?:text|textbf|mathrm|mathbf|textit|boxed|fbox)\s*(?=\{)|[${}*_`]|\\[,;:! ]")
_DENIED = re.compile(
    r"(?:\b(?i:not|rather than|instead of|neither|nor|unlike|except|but|cannot be)|n't(?:\s+be)?)\s+(?:the\s+)?"
    r"(?:option\s+|choice\s+)?\(?[A-Z]\b\)?(?:\s*(?:,|or|and|nor)\s*\(?[A-Z]\b\)?)*"
    r"|\(?\b[A-Z]\b\)?(?:\s*(?:,|or|and)\s*\(?[A-Z]\b\)?)*\s+(?:is|are|was|were)\s+(?:not|wrong|incorrect|false)\b"
    r"|\b[A-Z]\.[a-z]\.|\d\s*[A-Z]\b"
)
_LEADING = re.compile(
    r"\s*(?:(?:for sure|definitely|clearly|option|choice|letter|answer)\s+)*"
    r"(?:\(\s*([A-Za-z])\s*\)|([A-Z])\s*[).:,]|([A-Za-z])\s*(?:[).:,]?\s*$))"
)
_NAMED = re.compile(r"\b(?:option|choice|letter)\s+\(?([A-Za-z])\b\)?|\(([A-Z])\)|(?<![A-Za-z'])([A-Z])(?![A-Za-z'])")
_WORD = re.compile(r"\b[IA] (?=[a-z])(?!or\b|and\b|is\b)|\b[A-Z]\.(?=\s*[A-Z][a-z])")
_FURTHER = re.compile(r"\s*(?:,|and|or|/|&)\s*(?:option\s+)?\(?([A-Z])\b\)?")


def letters(line: str) -> set[str]:
    """Return the capital letters that a line chooses.

    If the line begins with a letter, only that letter counts, even if the line explains other letters."""
    text = _DENIED.sub(" ", _STYLE.sub(" ", line)).strip(" .")
    if leading := _LEADING.match(text):
        first = next(g for g in leading.groups() if g)
        further = _FURTHER.match(text, leading.end())
        return {first.upper(), further[1]} if further else {first.upper()}
    named = _NAMED.finditer(_WORD.sub(" ", text))
    return {next(g for g in m.groups() if g).upper() for m in named}
