"""Finds the visible part of a response: the text after its thoughts, without special tokens of chat templates."""

from __future__ import annotations

import re

TAIL = 20_000  # only this many last characters of the visible part are searched for an answer

_NAMES = "think|thinking|thought|thoughts|reasoning|scratchpad|reflection|inner_monologue|reasoning_start|reasoning_end"
_CLOSE = re.compile(
    rf"</(?:{_NAMES})>|\u25c1/think\u25b7|<\|/?(?:end_of_)?(?:think(?:ing)?|thought)\|>|\[/THINK\]", re.IGNORECASE
)
_OPEN = re.compile(rf"<(?:{_NAMES})>|\u25c1think\u25b7|<\|begin_of_thought\|>|\[THINK\]", re.IGNORECASE)
_SPECIAL = re.compile(
    r"<[|\uff5c][^|\uff5c<>\n]{1,60}[|\uff5c]>|</?s>|<(?:eos|bos|pad|end_of_turn|start_of_turn|endoftext)>|\[/?INST\]"
)
_BLANKS = re.compile(r"[ \t]{4,}")
_ANSWER = re.compile(r"<answer>.*</answer>", re.DOTALL | re.IGNORECASE)


def spoken(response: str) -> str:
    """Return the visible part of a response, at most its last `TAIL` characters.

    The visible part follows the last closed thought; a chat template may have opened that thought. In a thought that
    never closes only a complete <answer> counts, because the response was cut inside the thought.
    """
    text = response
    if "<" in response or "[" in response or "\u25c1" in response:
        end = max((m.end() for m in _CLOSE.finditer(response)), default=0)
        text = response[end:]
        if opened := _OPEN.search(text):
            before, thought = text[: opened.start()], text[opened.end() :]
            answer = _ANSWER.search(thought[-TAIL:])
            text = answer[0] if answer else before
        text = _SPECIAL.sub("\n", text[-TAIL:])
    return _BLANKS.sub(" ", text[-TAIL:])
