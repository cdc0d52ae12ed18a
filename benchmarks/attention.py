"""`python -m benchmarks.attention`: times the attention of one tree in bfloat16 on CPU, forward and backward. It
compares SDPA's kernel with plain matrix products. It prints one JSON object per line: CPU milliseconds, the minimum
over several rounds. The shape is that of SmolLM2-135M (9 query heads and 3 key heads of width 64).

The last line compares a tree of --branches branches after a segment, of --length rows each, as one block with the same
tree cut into blocks. `scores_of_a_block` is the time of a block of 8 rows, counted in scores of the large block."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence

import torch

from treeadv.command_line import run_command, tool_parser
from treeadv.learning import attention


def main(argv: Sequence[str] | None = None) -> None:
    p = tool_parser("python -m benchmarks.attention", __doc__)
    p.add_argument("--rows", type=int, nargs="+", default=[64, 128, 512])
    p.add_argument("--prompt", type=int, default=48)
    p.add_argument("--branches", type=int, default=4)
    p.add_argument("--length", type=int, default=512)
    p.add_argument("--rounds", type=int, default=15)
    args = p.parse_args(argv)
    torch.set_num_threads(1)
    for rows in args.rows:
        print(json.dumps(_measure(rows, rows + args.prompt, args.rounds)), flush=True)
    print(json.dumps(_cut(args.branches, args.length, args.rounds)), flush=True)


def _measure(rows: int, keys: int, rounds: int) -> dict[str, float]:
    out: dict[str, float] = {"rows": rows, "keys": keys}
    usual = attention.PLAIN_SCORES
    for name, limit in (("sdpa_ms", 0), ("plain_ms", 1 << 30)):
        attention.PLAIN_SCORES = limit
        out[name] = _block(rows, keys, rounds)
    attention.PLAIN_SCORES = usual
    return out


def _cut(branches: int, length: int, rounds: int) -> dict[str, float]:
    rows = (branches + 1) * length
    whole, small = _block(rows, rows, rounds), _block(8, 64, rounds)
    cut = _block(length, length, rounds) + branches * _block(length, 2 * length, rounds)
    return {"rows": rows, "whole_ms": whole, "cut_ms": cut, "scores_of_a_block": round(small / whole * rows**2)}


def _block(rows: int, keys: int, rounds: int) -> float:
    """Return the milliseconds of one block."""
    shapes = (9, rows), (3, keys), (3, keys)
    q, k, v = (torch.randn(1, h, n, 64, dtype=torch.bfloat16, requires_grad=True) for h, n in shapes)
    mask = torch.ones(rows, keys, dtype=torch.bool).tril(keys - rows)
    return _least(lambda: attention._attend(q, k, v, mask, None, True).sum().backward(), rounds)


def _least(run: Callable[[], None], rounds: int) -> float:
    best = float("inf")
    for _ in range(rounds):
        began = time.process_time()
        run()
        best = min(best, time.process_time() - began)
    return round(1e3 * best, 3)


if __name__ == "__main__":
    sys.exit(run_command(main))
