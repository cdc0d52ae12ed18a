"""Finds the commands that the documents give, and replaces their placeholders."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    f for pattern in ("*.md", "docs/*.md", "helm/treeadv/*.md", ".github/**/*.md") for f in ROOT.glob(pattern)
    if f.name != "CHANGELOG.md"
)  # fmt: skip
# Programs that a line of a document may start with. Those of `FOREIGN` do not belong to this project.
OWN = ("treeadv", "make", "pytest", "python", "pip", ".ci/run")
FOREIGN = ("git", "helm", "kubectl", "docker", "ray", "tensorboard", "mkdir", "rm", "export")
_BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.M | re.S)
_SETTING = re.compile(r"[A-Z_]+=\S+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command of a page: its program and the words after it."""

    page: Path
    text: str
    program: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}: {self.text}"


def commands() -> list[Command]:
    """Return every command once, with the first page that gives it."""
    found: dict[str, Command] = {}
    for page in PAGES:
        for text, must in lines(page.read_text()):
            for piece in re.split(r" (?:&&|\||>) ", text):
                if command := read(page, piece):
                    found.setdefault(piece, command)
                else:
                    assert not must, f"{page.name}: no known program starts the line {piece!r}"
    return list(found.values())


def lines(text: str) -> Iterator[tuple[str, bool]]:
    """Yield (line, whether it must be a command) for each line of the blocks and each text in backticks. Every line of
    a block for a shell must be a command."""
    for language, block in _BLOCK.findall(text):
        if language in ("", "bash", "sh", "shell", "console"):
            for line in re.sub(r"\\\n\s*", " ", block).splitlines():
                if line := line.partition("  #")[0].strip():
                    yield line, bool(language)
    for inline in re.findall(r"(?<!`)`([^`]+)`(?!`)", _BLOCK.sub("", text)):
        yield " ".join(inline.split()), False


def read(page: Path, text: str) -> Command | None:
    """Return the command of a line; None if the line starts with no known program."""
    if "(" in text and not text.startswith(FOREIGN):  # a call of a function, such as `treeadv.loss(...)`
        return None
    try:
        words = shlex.split(text)
    except ValueError:  # an apostrophe of a sentence
        return None
    while words and _SETTING.fullmatch(words[0]):  # a variable that the line sets
        del words[0]
    if not words or (program := words[0].removeprefix(".venv/bin/")) not in OWN + FOREIGN:
        return None
    if not words[1:] and program != ".ci/run":  # the name of a program
        return None
    return Command(page=page, text=text, program=program, words=tuple(words[1:]))
