"""The commands of `treeadv`: how they are added, and how one of them is called."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from treeadv import __version__
from treeadv.command_line import Parser, run_command

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
    """Parse the arguments and call the command. Returns its exit code."""

    def call() -> int:
        args = parser.parse_args(argv)
        code: int = args.call(args)
        return code

    return run_command(call)
