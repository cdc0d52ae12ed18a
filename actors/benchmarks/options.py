"""The options that benchmarks of a model share."""

from __future__ import annotations

import argparse

from treeadv.command_line import tool_parser
from treeadv.data import model_folder as models


def model_parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """Return a parser with --model and --cache. `doc` is the text of its help."""
    p = tool_parser(name, doc)
    p.add_argument("--json", action="store_true", help="has no effect: the output is always JSON")
    p.add_argument("--model", default=models.SMOLLM2, help="a Hugging Face folder")
    p.add_argument("--cache", default="models", help="where a packaged model is unpacked")
    return p
