"""Compares the verdicts of treeadv with those of an independent grader on the same responses.

    python -m benchmarks.agreement PATH [...]    # folders of `treeadv eval --out`, files of `treeadv grade --out`

The grader is that of lm-eval's hendrycks_math: the last \\boxed answer and the gold answer are equal as normalised
strings. It is loaded from the installed package (pip install --no-deps lm-eval==0.4.13) without its dependencies. The
command prints one JSON object for each difference, then one with the counts.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

from treeadv.command_line import local, run_command, tool_parser
from treeadv.errors import BadInput
from treeadv.jsonl import read_jsonl

GRADER = Path("tasks/hendrycks_math/utils.py")


def independent_grader() -> ModuleType:
    """Return the module of the grader, loaded from its file alone. Raises `BadInput` if the package is not
    installed."""
    package = importlib.util.find_spec("lm_eval")
    if package is None or package.origin is None:
        raise BadInput("lm_eval is not installed: pip install --no-deps lm-eval==0.4.13")
    spec = importlib.util.spec_from_file_location("hendrycks_math", Path(package.origin).parent / GRADER)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def correct(grader: ModuleType, response: str, gold: str) -> bool:
    """Return whether the grader accepts the last boxed answer for the gold answer."""
    boxed = grader.last_boxed_only_string(response)
    if boxed is None:
        return False
    try:
        return bool(grader.is_equiv(grader.remove_boxed(boxed), gold))
    except AssertionError:  # remove_boxed refuses a box without braces, such as "\\boxed 3"
        return False


def graded(path: Path) -> Iterator[tuple[str, str, str, str, str]]:
    """Yield (set, id, gold answer, response, treeadv's verdict) of each answer."""
    if path.is_file():
        for n, row in read_jsonl(path, "a graded answer"):
            yield path.stem, str(row.get("id", n)), str(row["answer"]), row["response"], row["verdict"]
    for file in sorted((path / "answers").glob("*.jsonl")):
        for _, problem in read_jsonl(file, "a finished problem"):
            for answer in problem["answers"]:
                yield file.stem, problem["id"], problem["gold"], answer["text"], answer["verdict"]


def main(argv: Sequence[str] | None = None) -> None:
    parser = tool_parser("python -m benchmarks.agreement", __doc__)
    parser.add_argument("paths", nargs="+", type=local)
    paths = parser.parse_args(argv).paths
    grader, counts = independent_grader(), Counter[str]()
    for name, number, gold, text, verdict in (row for path in paths for row in graded(path)):
        ours, theirs = verdict == "verified", correct(grader, text, gold)
        counts[f"ours {ours}, theirs {theirs}"] += 1
        if ours != theirs:
            case = {"set": name, "id": number, "gold": gold, "ours": verdict, "theirs": theirs, "end": text[-200:]}
            print(json.dumps(case, ensure_ascii=False))
    print(json.dumps(counts))


if __name__ == "__main__":
    sys.exit(run_command(main))
