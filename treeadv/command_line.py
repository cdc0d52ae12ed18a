"""The command lines of the project: one parser, and one place that prints errors.

`treeadv`, its benchmarks and every `python -m` of the repository use them. So each gives one line for a wrong option,
command or choice, with the nearest right one."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import errno
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from treeadv.errors import BadInput, one_line, single_errors
from treeadv.places import copy_command, is_text, is_uri, meant_uri, target_of
from treeadv.visible import visible

FIELD = "section.key=value"  # how help texts write a field of the configuration
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # errors of an output that takes no more bytes
_NUMBER = re.compile(r"-\.?\d")


class Parser(argparse.ArgumentParser):
    """A parser that prints an error as one line, which names the nearest option, command or choice.

    Unknown options are refused first, because argparse would only report what is missing without them."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        words = sys.argv[1:] if args is None else list(args)
        self._refuse_unknown_options(words)
        parsed, rest = super().parse_known_args(words, namespace)
        if rest:
            named = next((a.metavar for a in self._actions if not a.option_strings and a.nargs == "*"), None)
            together = f"; write every {named} at one place" if named else ""
            self.error(f"unexpected argument {rest[0]}{together}")
        return parsed, rest

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"treeadv: error: {visible(message)} (see {self.prog} --help)\n")

    def _refuse_unknown_options(self, words: Sequence[str]) -> None:
        """Refuse the first option that is neither an option of this parser nor the start of one."""
        has_commands = any(a.nargs in (argparse.PARSER, argparse.REMAINDER) for a in self._actions)
        for at, word in enumerate(words):
            if word[:1] != "-" or word == "-" or " " in word or _NUMBER.match(word):  # argparse takes these as values
                if has_commands:  # the later words belong to the command
                    return
                continue
            if word == "--":
                return
            name, _, value = word.partition("=")
            if not any(option.startswith(name) for option in self._option_string_actions):
                following = words[at + 1] if len(words) > at + 1 else ""
                self.error(f"unknown option {name}{self._meant(name, value or following)}")

    def _meant(self, name: str, value: str) -> str:
        """Return what the unknown option `name` may mean: a field of the configuration, or another option."""
        option = nearest(name, self._option_string_actions)
        if not any(a.metavar == FIELD and not a.option_strings for a in self._actions):
            return option
        from treeadv.config import similar_keys  # loads pydantic, which only this error needs

        word = name.strip("-").replace("-", "_")
        keys = similar_keys(word)
        if not keys or (option and all(key.rpartition(".")[2] != word for key in keys)):
            return option
        given = value if value and not value.startswith("-") and "=" not in value else "VALUE"
        return f"; fields are set without dashes: {' or '.join(f'{key}={given}' for key in keys)}"

    def _check_value(self, action: argparse.Action, value: object) -> None:
        if action.choices is None or value in action.choices:
            return
        names = [str(choice) for choice in action.choices]
        remedy = nearest(str(value), names) or f"; choose from {', '.join(names)}"
        if action.option_strings:
            what = f"{action.option_strings[0]} has no choice {value}"
        else:
            what = f"unknown {str(action.metavar or action.dest).lower()} {value}"
        raise argparse.ArgumentError(None, f"{what}{remedy}")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a question that names the known word with the most similar spelling; empty if none is similar."""
    bare = {word.strip("-").lower(): word for word in known}
    close = difflib.get_close_matches(name.strip("-").lower(), bare, n=1)
    return f", did you mean {bare[close[0]]}?" if close else ""


def tool_parser(prog: str, description: str | None) -> Parser:
    """Return the parser of a benchmark or of a `python -m`. The description keeps its lines."""
    return Parser(prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def run_command(call: Callable[[], int | None]) -> int:
    """Call a command and return its exit code. Prints one line on stderr for bad input."""
    try:
        code = call() or 0
        if sys.stdout:
            sys.stdout.flush()  # an error of the output then has a handler
        return code
    except (BadInput, PermissionError, BaseExceptionGroup) as error:
        causes = list(single_errors(error))
        bad = next((e for e in causes if isinstance(e, BadInput)), None) or _denied(causes)
        if bad is None:
            raise
        print(f"treeadv: error: {visible(str(bad))}", file=sys.stderr)
        return bad.exit_code
    except OSError as error:
        # Other errors of files become `BadInput` where they occur. The standard output has no file name.
        if error.filename is not None or error.errno not in _NO_ROOM:
            raise
        print(
            f"treeadv: error: the output cannot be written ({error.strerror}); make room, and repeat", file=sys.stderr
        )
        _discard_output()
        return 1
    except KeyboardInterrupt:
        return 130


def _denied(causes: Iterable[BaseException]) -> BadInput | None:
    """Return the error for the first file or folder that this user may not use; None if there is no such file."""
    for cause in causes:
        if isinstance(cause, PermissionError) and (cause.filename is not None or "local file" in str(cause)):
            named = cause.filename is not None  # otherwise the message of pyarrow names the file
            fault = f"{cause.filename}: cannot be used ({cause.strerror})" if named else one_line(cause)
            return BadInput(f"{fault}; give this user the permission for it, or choose another place")
    return None


def _discard_output() -> None:
    """Send what is left of the standard output to nowhere. Python would otherwise report the error again at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def local(text: str) -> Path:
    """Parse an argument that must be a path on this machine. `Path` alone would turn s3://b/x into s3:/b/x."""
    if is_uri(text):
        raise argparse.ArgumentTypeError(
            f"{text} is not on this machine; copy it, then give {target_of(text)}: {copy_command(text)}"
        )
    return _typed_path(text)


def readable(text: str) -> str | Path:
    """Parse an argument that names a run to read: a path of this machine, or the URI of a run in an object store."""
    return text if is_uri(text) else _typed_path(text)


def output(text: str) -> Path:
    """Parse an argument that names a file or folder to write on this machine."""
    if is_uri(text):
        raise argparse.ArgumentTypeError(
            f"{text} is not on this machine; give a path of this machine, and copy the result afterwards"
        )
    return _typed_path(text)


def _typed_path(text: str) -> Path:
    if (uri := meant_uri(text)) is not None:
        raise argparse.ArgumentTypeError(f"{text} is no path and no URI; did you mean {uri}?")
    if not is_text(text):  # runs and seeds store names as UTF-8
        raise argparse.ArgumentTypeError(f"{text!a}: the name is not UTF-8 text; rename the file or folder")
    return Path(text)


def positive(text: str) -> int:
    """Parse an argument that must be an integer >= 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def above_zero(text: str) -> float:
    """Parse an argument that must be a finite number > 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number
