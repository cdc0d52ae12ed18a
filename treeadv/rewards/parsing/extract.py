"""Extracts the final answer of a response: the marked answer, or else the last formula or number.

Takes linear time and reads only the end of the response.
"""

from __future__ import annotations

import itertools
import re

from treeadv.rewards.parsing.notation import characters, repaired
from treeadv.rewards.parsing.prose import FORMULA, answer_in, last_value
from treeadv.rewards.parsing.thought import spoken

_BOX = re.compile(r"\\(?:boxed|fbox|framebox)\s*(?=\{)|\\(?:boxed|fbox)\s*(?P<bare>\d|[A-Za-z](?![A-Za-z]))")
_BRACES = re.compile(r"\\[{}\\]|[{}]")
_BLANK = re.compile(
    r"(?:\\(?:text|mathrm)\{)?[\s.$_?~\\]*(?:your |the )?(?:final )?(?:answer|\.\.\.|ldots|dots)?[\s.$_?~\\]*\}?",
    re.IGNORECASE,
)
_JOINT = re.compile(
    r"(?:[\s$.:()\[\]{}\\,;]|\\q?quad|\btext\b|\band\b|\bor\b|[A-Za-z](?:_\{?\w\}?)?\s*=){1,40}", re.IGNORECASE
)
_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)
_PHRASE = re.compile(
    r"\banswer\b(?:\*\*|__)?[^\n.:=]{0,40}?(?:\bis\b|\bare\b|:|=)(?!\s*n't)(?:\s+is\b)?\s*:?|####+:?"
    r"|\u7b54\u6848(?:\u662f|\u4e3a|:|\uff1a)*"
    r"|\*\*\s*(?:final\s+)?answer\s*\*\*\s*\n",
    re.IGNORECASE,
)
_CONCLUDED = re.compile(r"\bfinal answer is\b:?\s*", re.IGNORECASE)
_BOLD = re.compile(r"\*\*([^*\n]{1,80})\*\*")
_STOPS = re.compile(r"(?:(?<!\\)[.,;\u3002\s])+$")
_MARKDOWN = ' \t\r\n*_`:"'


def final_answer(response: str, several: bool = False) -> str | None:
    """Return the final answer of a response: the marked answer, or else the last formula or number, or else None.

    `several` says that the gold answer has several parts. Adjacent boxes that are joined only by commas, "and" or "or"
    are then one answer. Otherwise the last box counts.
    """
    text = spoken(response)
    marked, is_sentence = _marked(text, several)
    if marked is None:
        return None if _is_cut(text) else _bold(text) or last_value(text)
    return answer_in(marked) if is_sentence else clean(marked) or None


def marked_answer(response: str, several: bool = False) -> str | None:
    """Return the marked answer of a response, or None.

    The mark is the last box or <answer> tag, or else the last "answer is", "Answer:" or "####".
    """
    marked, is_sentence = _marked(spoken(response), several)
    if marked is None:
        return None
    return answer_in(marked) if is_sentence else clean(marked) or None


def marked_text(response: str) -> str | None:
    """Return the text where the response marks its answer, as it stands: the content of a box or tag, or the line after
    "answer is"."""
    marked, _ = _marked(spoken(response), False)
    return None if marked is None else marked.strip()


def boxed_text(text: str) -> str | None:
    """Return the content of the last box that is not empty, without changes; None if every box is empty."""
    filled = [text[begin:end] for begin, end in _boxes(text) if not _BLANK.fullmatch(text[begin:end])]
    return filled[-1].strip() if filled else None


def last_line(response: str) -> str | None:
    """Return the last line that is not blank: the whole answer of a response that is prose, not mathematics."""
    lines = [line for line in spoken(response).splitlines() if line.strip()]
    return lines[-1].strip() if lines else None


def clean(answer: str) -> str:
    """Return an answer without dollar signs around it and a full stop after it."""
    text = answer.strip()
    if len(text) > 1 and text[0] == text[-1] == "$" and text.count("$") <= 4:
        text = text.strip("$").strip()
    return _STOPS.sub("", text).strip()


def _marked(text: str, several: bool) -> tuple[str | None, bool]:
    """Return the marked text, and whether it is a sentence out of which the answer must still be read."""
    boxes = _boxes(text)
    filled = [b for b in boxes if not _BLANK.fullmatch(text[b[0] : b[1]])]
    tag = _tagged(text)
    if _is_cut(text):
        return None, False
    if filled and (tag is None or tag[1] < filled[-1][1] or tag[0] <= filled[-1][0]):
        if (concluded := _concluded(text[filled[-1][1] :])) is not None:
            return concluded, True
        chosen = _side_by_side(text, filled) if several else filled[-1:]
        content = ", ".join(text[begin:end] for begin, end in chosen)
        if re.search(r"\\\\boxed\s*\{$", text[: chosen[-1][0]][-20:]):  # the response escapes its backslashes twice
            content = repaired(content)
        percent = re.match(r"\}?\$?\s*(?:\\?%|percent|pct)", text[chosen[-1][1] :])
        return content + (r"\%" if percent and len(chosen) == 1 else ""), False
    if tag:
        return text[tag[0] : tag[1]], False
    phrases = list(_PHRASE.finditer(text))
    for phrase in reversed(phrases):
        rest = text[phrase.end() :].lstrip(_MARKDOWN)
        if rest and not _BLANK.fullmatch(rest.split("\n", 1)[0]) and not rest.startswith(("\\boxed{}", "\\boxed{ }")):
            return characters(rest), True
    return None, False


def _concluded(after: str) -> str | None:
    """Return the sentence after "The final answer is" that follows the last box, if the sentence states a value."""
    phrases = list(_CONCLUDED.finditer(after))
    rest = after[phrases[-1].end() :] if phrases else ""
    return characters(rest) if re.match(r"[\s*]*(?:\$|\\\(|-?\d)", rest) else None


def _is_cut(text: str) -> bool:
    """Return whether the last box or <answer> tag is open at the end of the text."""
    boxes = list(_BOX.finditer(text))
    last = boxes[-1] if boxes else None
    if last is not None and last["bare"] is None and _closing(text, last.end()) is None:
        return True
    tags = list(_TAG.finditer(text))
    return bool(tags) and not tags[-1][1]


def _closing(text: str, brace: int) -> int | None:
    """Return the index of the brace that closes the brace at index `brace`."""
    depth = 0
    for match in _BRACES.finditer(text, brace):
        depth += (match[0] == "{") - (match[0] == "}")
        if not depth:
            return match.start()
    return None


def _boxes(text: str) -> list[tuple[int, int]]:
    """Return (begin, end) of the content of every outermost box with balanced braces, in order.

    Takes one pass, also for a text with unclosed braces.
    """
    found: list[tuple[int, int]] = []
    opened: list[int | None] = []  # for each open brace: the start of its box's content, or None without a box
    boxes = list(_BOX.finditer(text))
    starts = {m.end(): m.end() + 1 for m in boxes if m["bare"] is None}
    for match in _BRACES.finditer(text):
        if match[0] == "{":
            opened.append(starts.get(match.start()))
        elif match[0] == "}" and opened and (begin := opened.pop()) is not None:
            while found and found[-1][0] > begin:  # boxes inside this one
                found.pop()
            found.append((begin, match.start()))
    return sorted(found + [m.span("bare") for m in boxes if m["bare"] is not None])


def _side_by_side(text: str, boxes: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the last boxes that are joined only by commas, "and" or "or"."""
    first = len(boxes) - 1
    while first and _JOINT.fullmatch(text[boxes[first - 1][1] + 1 : text.rindex("\\", 0, boxes[first][0])]):
        first -= 1
    return boxes[first:]


def _tagged(text: str) -> tuple[int, int] | None:
    """Return (begin, end) of the content of the last complete <answer> tag."""
    tags = list(_TAG.finditer(text))
    for opening, closing in reversed(list(itertools.pairwise(tags))):
        if not opening[1] and closing[1] and text[opening.end() : closing.start()].strip():
            return opening.end(), closing.start()
    return None


def _bold(text: str) -> str | None:
    """Return the last bold text, if it is a value and no value follows it."""
    bold = list(_BOLD.finditer(text))
    if not bold:
        return None
    content = bold[-1][1].strip()
    after = text[bold[-1].end() :]
    if (
        re.search(r"[A-Za-z]{4,}|:$", FORMULA.sub("", content))
        or re.search(r"\d|\$", after)
        or not re.search(r"\d|\$|\\", content)
    ):
        return None
    return answer_in(content)
