"""The final answer in a response. Linear in the length of the response, and it looks at its end only: a megabyte of text costs no more."""

from __future__ import annotations

import re

TAIL = 20_000  # characters from the end in which an answer is looked for

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_JOIN = re.compile(r"[\s$,;.:\\()\[\]]*(?:\\text\{)?\s*(?:,|;|and|or)\s*\}?[\s$,;.:\\()\[\]]*")
_PHRASE = re.compile(r"(?:\banswer\b[^\n.:=]{0,40}?(?:\bis\b|\bare\b|:|=)(?:\s+is\b)?\s*:?|####)[ \t]*\n?", re.IGNORECASE)
_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_SENTENCE = re.compile(r"\.(?=\s|$)|\n")
_MATH = re.compile(r"\$\$?([^$]+)\$\$?|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_NUMBER = re.compile(r"(?<![\w.,^])[-+\u2212]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.?\d+)(?:[eE][-+]?\d+)?(?:\s*/\s*\d+)?(?:\s?\\?%)?")
_LEADING = re.compile(r"[$€£¥]?\s*(" + _NUMBER.pattern.removeprefix(r"(?<![\w.,^])") + r")(?=[\s,;!?]+[A-Za-z(]|[\s!?.,;:]*$)")


def final_answer(response: str, several: bool = False) -> str | None:
    """The answer that a response ends with, stripped of its wrapping, or None.

    In this order: the last `\\boxed{...}`; `<answer>...</answer>`; what follows the last "answer is", "Answer:" or "####"; the last
    number. Of several boxes the last one counts, unless `several` (the gold answer has several parts): then boxes that stand side by
    side, joined by nothing but commas, "and" or "or", are one answer.
    """
    text = response[-TAIL:]
    boxes = _boxes(text)
    if boxes:
        return _clean(_joined(text, boxes) if several else text[slice(*boxes[-1])])
    if tag := list(_TAG.finditer(text)):
        return _clean(tag[-1][1])
    if phrase := _after_phrase(text):
        return phrase
    numbers = [m[0] for m in _NUMBER.finditer(text)]
    return _clean(numbers[-1]) if numbers else None


def last_line(response: str) -> str | None:
    """The last line that is not blank: the whole answer of a response that is prose, not mathematics."""
    lines = [line for line in response[-TAIL:].splitlines() if line.strip()]
    return lines[-1].strip() if lines else None


def marked_answer(response: str) -> str | None:
    """The answer where the response marks one (box, tag or phrase), else None: for answers that need not be numbers."""
    text = response[-TAIL:]
    boxes = _boxes(text)
    if boxes:
        return _clean(text[slice(*boxes[-1])])
    if tag := list(_TAG.finditer(text)):
        return tag[-1][1].strip()
    return _after_phrase(text)


def _boxes(text: str) -> list[tuple[int, int]]:
    """(begin, end) of the content of every outermost box with balanced braces, in order."""
    out = []
    at = 0
    while box := _BOX.search(text, at):
        end = _closing(text, box.end())
        if end is None:
            at = box.end()
            continue
        out.append((box.end(), end))
        at = end
    return out


def _closing(text: str, begin: int) -> int | None:
    depth, at = 1, begin
    while at < len(text):
        if text[at] == "\\":
            at += 2
            continue
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return at
        at += 1
    return None


def _joined(text: str, boxes: list[tuple[int, int]]) -> str:
    parts = [boxes[-1]]
    for box in reversed(boxes[:-1]):
        if not _JOIN.fullmatch(text[box[1] + 1 : text.rindex("\\", 0, parts[0][0])]):
            break
        parts.insert(0, box)
    return ", ".join(text[slice(*p)] for p in parts)


def _after_phrase(text: str) -> str | None:
    found = None
    for found in _PHRASE.finditer(text):
        pass
    if found is None:
        return None
    rest = text[found.end() :].lstrip(" \t*_")
    if math := _MATH.match(rest):
        return _clean(next(g for g in math.groups() if g))
    rest = _SENTENCE.split(rest, maxsplit=1)[0]
    math = _MATH.search(rest)
    return _clean(next(g for g in math.groups() if g) if math else rest) or None


def _clean(answer: str) -> str:
    """Without Markdown, dollar signs around it, a full stop after it; of plain text the number that it starts with or equals."""
    text = answer.strip().strip("*_`").strip()
    if len(text) > 1 and text[0] == text[-1] == "$":
        text = text.strip("$").strip()
    text = text.rstrip(".,;").strip()
    if "\\" not in text and "=" in text and not any(c in text for c in "<>,;"):
        text = text.rsplit("=", 1)[1].strip()
    number = _LEADING.match(text)
    return number[1].strip() if number and "\\" not in text else text
