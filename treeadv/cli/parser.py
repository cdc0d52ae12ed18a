"""The parser of the command `treeadv`. It adds commands, calls them, and prints errors for bad input."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import errno
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from treeadv import __version__
from treeadv.errors import BadInput, single_errors
from treeadv.visible import visible

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # errors of an output that takes no more bytes


class Parser(argparse.ArgumentParser):
    """A parser that prints an error as one line, like every other error of the command."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"treeadv: error: {visible(message)}{visible(_hint(message))} ({self.prog} --help)\n")


def _hint(message: str) -> str:
    """Return a suggestion for a wrong command or option. It is appended to the message of argparse."""
    if choice := re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)$", message):
        close = difflib.get_close_matches(choice[1], re.findall(r"[\w-]+", choice[2]), n=1)
        return f", did you mean {close[0]}?" if close else ""
    if option := re.match(r"unrecognized arguments: --([\w.-]+?)(?:=(\S+)| (\d\S*))?(?: |$)", message):
        from treeadv.config import similar_keys  # loads pydantic, which only this error needs

        keys = similar_keys(option[1].replace("-", "_"))
        value = option[2] or option[3] or "VALUE"
        return f"; fields are set without dashes: {' or '.join(f'{key}={value}' for key in keys)}" if keys else ""
    return ""


if TYPE_CHECKING:
    Commands: TypeAlias = argparse._SubParsersAction[Parser]  # argparse has no public name for it
else:
    Commands: TypeAlias = Any


def new_parser() -> tuple[Parser, Commands]:
    """Return the parser of `treeadv`, and the object that gets the commands."""
    parser = Parser(prog="treeadv", description="Tree-structured reinforcement learning for reasoning language models.")
    parser.add_argument("--version", action="version", version=f"treeadv {__version__}")
    return parser, parser.add_subparsers(title="commands", metavar="COMMAND", required=True)


def add_command(
    commands: Commands, name: str, call: Callable[[argparse.Namespace], int], text: str, **options: Any
) -> Parser:
    """Add the command `name`. `call` gets the parsed arguments and returns the exit code. `text` says what it does."""
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", **options)
    parser.set_defaults(call=call)
    return parser


def dispatch(parser: Parser, argv: Sequence[str] | None = None) -> int:
    """Parse the arguments and call the command. Returns its exit code. Prints one line on stderr for bad input."""
    try:
        args = parser.parse_args(argv)
        code: int = args.call(args)
        if sys.stdout:
            sys.stdout.flush()  # here, so that an error of the output is found in time
        return code
    except (BadInput, BaseExceptionGroup) as error:
        bad = next((e for e in single_errors(error) if isinstance(e, BadInput)), None)
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


def _discard_output() -> None:
    """Send what is left of the standard output to nowhere. Python would otherwise report the error again at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def positive(text: str) -> int:
    """Parse an argument that must be an integer >= 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)
