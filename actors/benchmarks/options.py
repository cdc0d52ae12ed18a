"""The options that benchmarks share."""

from __future__ import annotations

import argparse

from treeadv.command_line import tool_parser
from treeadv.data import model_folder as models


def bench_parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """Return a parser with --json. `doc` is the text of its help."""
    p = tool_parser(name, doc)
    p.add_argument("--json", action="store_true", help="has no effect: the output is always JSON")
    return p


def model_parser(name: str, doc: str | None, model: str = "a Hugging Face folder") -> argparse.ArgumentParser:
    """Return a parser with --json, --model and --cache. `model` is the help of --model."""
    p = bench_parser(name, doc)
    p.add_argument("--model", default=models.SMOLLM2, help=model)
    p.add_argument("--cache", default="models", help="where a packaged model is unpacked")
    return p
