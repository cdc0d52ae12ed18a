"""The verifier `exact`, which compares texts."""

from __future__ import annotations

import re

from treeadv.rewards.judgement import Answer, Grade, unparsed, verified, wrong
from treeadv.rewards.parsing.extract import clean, last_line, marked_answer, marked_text
from treeadv.rewards.verifiers.base import Verifier

_STOP = re.compile(r"[.;!](?=\s|$)|\n")


class Exact(Verifier):
    """A verifier that compares the marked answer, or the last line, with the gold answer. White space and a final full
    stop do not count.

    After "the answer is", the answer may end at any full stop of the line, because a gold answer may contain full
    stops.
    """

    usage = "exact"

    def read_part(self, answer: Answer) -> str:
        return marked_text(answer.response) or last_line(answer.response) or ""

    def screen(self, answer: Answer) -> Grade:
        text = self.read_part(answer)
        if not text:
            return unparsed("no answer found")
        texts = [text, *(text[: m.start()] for m in _STOP.finditer(text)), marked_answer(answer.response) or text]
        return verified() if _plain(answer.gold) in filter(None, map(_plain, texts)) else wrong()


def _plain(text: str) -> list[str]:
    return clean(text.strip(' *_`"')).split()
