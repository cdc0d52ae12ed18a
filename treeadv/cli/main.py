"""The commands that need no Ray. `actors/cli.py` adds the other commands of `treeadv` to the same parser.

Large packages are imported only when a command runs, so `treeadv --help` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from treeadv.cli import evaluate, grade, init, plan, rollouts, runs, show, study, view, watch
from treeadv.cli.parser import Commands, dispatch, new_parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one of the library's commands. The installed `treeadv` (actors.cli) also has the commands that need Ray."""
    parser, commands = new_parser()
    add_commands(commands)
    return dispatch(parser, argv)


def add_commands(commands: Commands) -> None:
    """Add the library's commands, in the order of `treeadv --help`."""
    for module in (init, rollouts, evaluate, grade, show, view, runs, watch, plan, study):
        module.add(commands)


if __name__ == "__main__":
    sys.exit(main())
