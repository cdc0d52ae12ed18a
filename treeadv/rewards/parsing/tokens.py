"""The lexer: splits a normalised answer into numbers, letters, commands, signs and words."""

from __future__ import annotations

import re
from dataclasses import dataclass

NUMBER, LETTER, COMMAND, SIGN, WORDS, END = "number", "letter", "command", "sign", "words", "end"


class Unreadable(Exception):
    """The text is outside of the grammar."""


@dataclass(frozen=True, slots=True)
class Token:
    """One token. `begin` and `end` are its range in the text."""

    kind: str
    text: str
    begin: int
    end: int


PLAIN_FUNCTIONS = {
    "sqrt", "cbrt", "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "arccot", "sinh", "cosh",
    "tanh", "coth", "log", "ln",
    "lg", "exp", "gcd", "lcm", "max", "min", "mod", "abs", "ceil", "floor", "binom", "sgn",
}  # fmt: skip
_SPELLINGS = {
    "asin": "arcsin", "acos": "arccos", "atan": "arctan", "infinity": "infty", "inf": "infty", "oo": "infty",
    "pi": "pi", "Pi": "pi",
    "ceiling": "ceil", "binomial": "binom", "union": "cup", "theta": "theta", "alpha": "alpha", "beta": "beta",
    "phi": "phi",
}  # fmt: skip
_TOKEN = re.compile(
    r"(?P<text>\\text\{(?P<inside>[^{}]*)\})"
    r"|(?P<sci>(?:\d+(?:\.\d*)?|\.\d+)[eE][-+]?\d+(?![\w.]))"
    r"|(?P<number>\d+(?:\.\d+|\.(?!\.))?|\.\d+)"
    r"|(?P<command>\\[A-Za-z]+)"
    r"|(?P<escaped>\\[{}%$#&|\\_])"
    r"|(?P<word>[A-Za-z]+)"
    r"|(?P<sign>\*\*|<=|>=|!=|==|[-+*/^_=<>(){}\[\]|,;:!'.%&£€¥$\"])"
)
_LISTING = re.compile(r"\s*,?\s*(and|or)\s*,?\s*", re.IGNORECASE)


def tokens(text: str) -> list[Token]:
    """Return the tokens of a text, followed by an END token. Raises `Unreadable` at a character that begins no
    token."""
    found: list[Token] = []
    at = 0
    while at < len(text):
        if text[at] in " \t\n":
            at += 1
            continue
        match = _TOKEN.match(text, at)
        if match is None:
            raise Unreadable(f"the character {text[at]!r}")
        found += _read(match)
        at = match.end()
    found.append(Token(END, "", len(text), len(text)))
    return found


def _read(match: re.Match[str]) -> list[Token]:
    begin, end, kind = match.start(), match.end(), match.lastgroup
    if match["text"] is not None:
        inside = match["inside"].strip()
        if listing := _LISTING.fullmatch(match["inside"]):
            return [Token(COMMAND, listing[1].lower(), begin, end)]
        if re.fullmatch(r"[,;.\s]*", inside):
            return [Token(SIGN, c, begin, end) for c in inside if c != "."]
        return [Token(WORDS, inside, begin, end)]
    if kind in ("sci", "number"):
        return [Token(NUMBER, match[0], begin, end)]
    if kind == "command":
        return [Token(COMMAND, match[0][1:], begin, end)]
    if kind == "escaped":
        return [Token(SIGN, match[0], begin, end)]
    if kind == "word":
        return _word(match[0], begin)
    return [Token(SIGN, match[0], begin, end)]


def _word(word: str, begin: int) -> list[Token]:
    """Return the tokens of a sequence of letters.

    The sequence is the name of a function or a constant, "and", a word of at least four letters, or else a product of
    letters.
    """
    end = begin + len(word)
    if word in ("and", "or"):
        return [Token(COMMAND, word, begin, end)]
    if word in PLAIN_FUNCTIONS:
        return [Token(COMMAND, word, begin, end)]
    if word in _SPELLINGS:
        return [Token(COMMAND, _SPELLINGS[word], begin, end)]
    if len(word) >= 4:
        return [Token(WORDS, word, begin, end)]
    return [Token(LETTER, letter, begin + n, begin + n + 1) for n, letter in enumerate(word)]
