"""Text from other sources in a form that is safe for a terminal, a log and XML. Visible characters replace invisible
ones.

Such text comes from a file, a model, a user's function or another machine. Examples are ids, answers, gold answers,
rules and error messages. The text may hold terminal escapes, marks that reverse the order of the text, or halves of
surrogate pairs."""

from __future__ import annotations

import logging
import unicodedata

_DELETE = 0x7F


class _Table(dict[int, str]):
    """The replacement of each character for `str.translate`. An entry is added when its character first occurs."""

    def __init__(self, newline: str) -> None:
        super().__init__({ord("\n"): newline})

    def __missing__(self, code: int) -> str:
        shown = self[code] = _shown(chr(code))
        return shown


def _shown(character: str) -> str:
    code = ord(character)
    if character.isprintable() or unicodedata.category(character) == "Zs":
        return character
    if code < 0x20:
        return chr(0x2400 + code)
    if code == _DELETE:
        return "␡"
    return character.encode("unicode_escape").decode()  # C1, bidi and other format characters, surrogates, U+FFFE


_TABLES: dict[str, _Table] = {}


def visible(text: str, newline: str = "⏎") -> str:
    r"""Return the text with a symbol or an escape in place of each character that is not printable. Spaces stay.

    A line break becomes `newline`: a symbol if the text must be one line, "\n" if the lines must stay.

    >>> visible("a\x1b[31m\u202eb\n")
    'a␛[31m\\u202eb⏎'
    """
    if text.isprintable():
        return text
    table = _TABLES.get(newline)
    if table is None:
        table = _TABLES[newline] = _Table(newline)
    return text.translate(table)


class _Filter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = visible(record.getMessage()), None
        if record.exc_info and not record.exc_text:
            record.exc_text = visible(logging.Formatter().formatException(record.exc_info), newline="\n")
        return True


_FILTER = _Filter()


def visible_logger(name: str) -> logging.Logger:
    """Return the logger of that name after adding a filter that writes messages and tracebacks as `visible` does."""
    logger = logging.getLogger(name)
    logger.addFilter(_FILTER)  # repeated calls add the filter only once
    return logger
