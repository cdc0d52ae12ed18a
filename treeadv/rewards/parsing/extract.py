"""The final answer in a response. Linear time, and only the end is read: a megabyte of text costs no more than a page."""

from __future__ import annotations

import re

from treeadv.rewards.parsing.numbers import MAGNITUDE
from treeadv.rewards.parsing.units import unit

TAIL = 20_000  # characters from the end in which an answer is looked for

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_JOIN = re.compile(r"(?:[\s$.:()\[\]{}\\,;]|\btext\b|\band\b|\bor\b){1,30}", re.IGNORECASE)
_PHRASE = re.compile(r"(?:\banswer\b[^\n.:=]{0,40}?(?:\bis\b|\bare\b|:|=)(?:\s+is\b)?\s*:?|####)[ \t*_]*\n?", re.IGNORECASE)
_SENTENCE = re.compile(r"\.(?=\s|$)|\n")
_MATH = re.compile(r"(?<!\\)\$\$?((?:[^$\\]|\\.){1,2000})\$\$?|\\\((.{1,2000}?)\\\)|\\\[(.{1,2000}?)\\\]", re.DOTALL)
_NUMBER = re.compile(
    r"(?<![\w.,^])[-+\u2212]?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"  # 12, 1,234.5, .5
    rf"(?:[eE][-+]?\d+)?(?:\s*/\s*\d+)?(?:\s?\\?%|\s{MAGNITUDE})?"
)
_MARKDOWN = " \t\r*_`"
_CHANGED = re.compile(  # words that change the number before them
    r"\s*(?:pi|sqrt|squared|cubed|factorial|hal(?:f|ves)|(?:third|fourth|fifth|sixth|seventh|eighth|ninth|(?:hundred|thousand|ten)th)s?|"
    r"percent|plus|minus|times|divided|over|mod(?:ulo)?)\b"
)
_PROSE = re.compile(r"(?<![\\A-Za-z])(?!and\b)[A-Za-z]{3,}")


def final_answer(response: str, several: bool = False) -> str | None:
    """The answer that a response ends with, or None: the marked one, else the last number.

    `several` says that the gold answer has several parts: boxes that stand side by side, joined by nothing but commas, "and" or "or",
    are then one answer. Otherwise the last box counts.
    """
    if (answer := marked_answer(response, several)) is not None:
        return answer
    if _BOX.search(response):  # a box that never closes, or one longer than what is read, holds no number to guess at
        return None
    numbers = _NUMBER.findall(response[-TAIL:])
    return clean(numbers[-1]) if numbers else None


def marked_answer(response: str, several: bool = False) -> str | None:
    """The answer where the response marks one: the last box, else the last <answer> tag, else after "answer is", "Answer:" or "####"."""
    text = response[-TAIL:]
    if boxes := _boxes(text):
        return clean(", ".join(text[begin:end] for begin, end in (_side_by_side(text, boxes) if several else boxes[-1:])))
    before, tag, _ = text.rpartition("</answer>")
    if tag and "<answer>" in before:
        return clean(before.rpartition("<answer>")[2])
    return _after_phrase(text)


def last_line(response: str) -> str | None:
    """The last line that is not blank: the whole answer of a response that is prose, not mathematics."""
    lines = [line for line in response[-TAIL:].splitlines() if line.strip()]
    return lines[-1].strip() if lines else None


def _boxes(text: str) -> list[tuple[int, int]]:
    """(begin, end) of the content of every outermost box with balanced braces, in order. One pass, whatever is left open."""
    out: list[tuple[int, int]] = []
    opened: list[int | None] = []  # of each open brace, where its box's content begins, or None
    starts = {m.end() - 1: m.end() for m in _BOX.finditer(text)}
    for m in re.finditer(r"\\[{}\\]|[{}]", text):
        if m[0] == "{":
            opened.append(starts.get(m.start()))
        elif m[0] == "}" and opened and (begin := opened.pop()) is not None:
            while out and out[-1][0] > begin:  # boxes inside this one
                out.pop()
            out.append((begin, m.start()))
    return out


def _side_by_side(text: str, boxes: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The last boxes between which nothing stands but a joint."""
    first = len(boxes) - 1
    while first and _JOIN.fullmatch(text[boxes[first - 1][1] + 1 : text.rindex("\\", 0, boxes[first][0])]):
        first -= 1
    return boxes[first:]


def _after_phrase(text: str) -> str | None:
    phrases = list(_PHRASE.finditer(text))
    if not phrases:
        return None
    rest = text[phrases[-1].end() :].lstrip(_MARKDOWN)
    if _MATH.match(rest):
        return clean(_mathematics(rest))
    sentence = _SENTENCE.split(rest, maxsplit=1)[0].strip(_MARKDOWN)
    return clean(_mathematics(sentence) if _MATH.search(sentence) else _of_prose(sentence)) or None


def _of_prose(sentence: str) -> str:
    """Of "that Ann has 12 apples" and "12 pears" the 12, of "4 apples and 3 pears" the 4, of "2 thirds of it" the "2 thirds"; formulas,
    one number with its unit and words as they are."""
    if not _PROSE.search(sentence) or any(c in sentence for c in "\\=^<>"):
        return sentence
    numbers = list(_NUMBER.finditer(sentence))
    leads = bool(numbers) and not _PROSE.search(sentence[: numbers[0].start()])
    if not numbers:
        return sentence
    number = numbers[0 if leads else -1]
    if changed := _CHANGED.match(sentence, number.end()):
        return number[0] + changed[0]
    return sentence if leads and len(numbers) == 1 and unit(sentence[number.end() :]) else number[0]


def _mathematics(text: str) -> str:
    """The first $...$ and those joined to it."""
    parts = list(_MATH.finditer(text))
    last = 0
    while last + 1 < len(parts) and _JOIN.fullmatch(text[parts[last].end() : parts[last + 1].start()]):
        last += 1
    return ", ".join(next(g for g in m.groups() if g is not None) for m in parts[: last + 1])


def clean(answer: str) -> str:
    """An answer without dollar signs around it and a full stop after it."""
    text = answer.strip()
    if len(text) > 1 and text[0] == text[-1] == "$" and text.count("$") <= 4:
        text = text.strip("$").strip()
    return text.rstrip(".,;").strip()
