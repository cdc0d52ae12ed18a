"""Finds the command lines of the project: those of the parser of `treeadv`, the benchmarks, and each module that runs
as `python -m`. It starts them in this process."""

from __future__ import annotations

import argparse
import importlib
import runpy
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import pytest

import actors.cli
from treeadv.cli.parser import new_parser
from treeadv.command_line import Parser

ROOT = Path(__file__).parents[1]
PACKAGES = ("treeadv", "actors", "benchmarks", "monitoring", "deploy")
# Processes that other code of the project starts. Their arguments are no interface of a user.
PROCESSES = {"treeadv.rewards.sandbox.worker", "treeadv.engines.sglang.launch", "actors.benchmarks.overlap_roles"}
COMMANDS = {"treeadv.cli.main", "actors.cli"}  # the parser of `treeadv` itself


def commands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Yield a parser and the parsers of its commands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from commands(inner)


def treeadv() -> Parser:
    parser, added = new_parser()
    actors.cli.add_all(added)
    return parser


def modules() -> set[str]:
    """Return every module of the project that can be run."""
    files = [f for package in PACKAGES for f in (ROOT / package).rglob("*.py")]
    runnable = [f for f in files if 'if __name__ == "__main__"' in f.read_text()]
    return {".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__") for f in runnable}


TOOLS = sorted(modules() - PROCESSES - COMMANDS) + [f"bench {name}" for name in actors.cli.BENCHMARKS]
WORDS = {p.prog.removeprefix("treeadv").strip(): p for p in commands(treeadv())}


def start(tool: str, arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a tool in this process. The tests end it when it reads its arguments."""
    if tool.startswith("bench "):
        importlib.import_module(f"actors.benchmarks.{tool.removeprefix('bench ')}").main(list(arguments))
    else:
        monkeypatch.setattr(sys, "argv", [tool, *arguments])
        runpy.run_module(tool, run_name="__main__")


class Reached(Exception):
    """A tool has reached the point at which it reads its arguments."""


def parser_of(tool: str, monkeypatch: pytest.MonkeyPatch) -> Parser:
    found: list[Parser] = []

    def parse_args(self: Parser, *_: object) -> NoReturn:
        found.append(self)
        raise Reached

    with monkeypatch.context() as patched:
        patched.setattr(Parser, "parse_args", parse_args)
        with pytest.raises(Reached):
            start(tool, [], patched)
    return found[0]
