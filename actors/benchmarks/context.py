"""`treeadv bench context`: the embedded engine against transformers on long prompts and answers.

A forest has --leaves answers of a shared prompt of --prompt tokens. Each answer has --answers tokens, which no other
answer shares. The tokens are random. The model has the shape of --model, but --layers layers and random weights.
It prints two JSON objects for each number of tokens.

    prefill   seconds until the keys and values of all paths are computed, as after new weights: `engine_s`, and
              `transformers_s` with one batch of whole paths. One call computes at most 512 tokens in both.
              `rows` is the number of tokens that the engine computes
    step      seconds of a step that draws one token for each answer: `engine_s`, and `transformers_s` with its cache.
              `engine_over_transformers` is the ratio of the speeds in both lines
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from actors.benchmarks.lines import print_figures
from actors.benchmarks.options import model_parser
from actors.benchmarks.short_model import shortened
from treeadv.command_line import positive
from treeadv.data import model_folder as models
from treeadv.engines.base import Params
from treeadv.engines.embedded import EmbeddedEngine
from treeadv.engines.packing import PREFILL_ROWS


def main(argv: list[str]) -> None:
    p = model_parser("treeadv bench context", __doc__)
    p.add_argument("--layers", type=positive, default=3)
    p.add_argument("--leaves", type=positive, default=8)
    p.add_argument("--prompt", type=positive, default=4000, help="tokens of the prompt")
    p.add_argument("--answers", type=positive, nargs="+", default=[500, 2000, 8000], help="tokens of an answer")
    p.add_argument("--steps", type=positive, default=16, help="steps that are measured")
    p.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    p.add_argument("--threads", type=positive, default=1)
    args = p.parse_args(argv)
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as root:
        changes = {
            "num_hidden_layers": args.layers,
            "max_position_embeddings": args.prompt + max(args.answers) + args.steps + 1,
        }
        folder = shortened(models.resolve(args.model, args.cache), Path(root), **changes)
        vocabulary = AutoConfig.from_pretrained(folder).vocab_size
        for answer in args.answers:
            paths = _paths(args, answer, vocabulary)
            engine_s, rows = asyncio.run(_engine(folder, paths, args))
            plain_s = _transformers(folder, paths, args)
            for name, ours, theirs, more in zip(
                ("prefill", "step"), engine_s, plain_s, ({"rows": rows}, {}), strict=True
            ):
                print_figures(
                    bench="context", way=name, dtype=args.dtype, leaves=args.leaves, prompt=args.prompt, answer=answer,
                    engine_s=ours, transformers_s=theirs, engine_over_transformers=theirs / ours, **more,
                )  # fmt: skip


def _paths(args: argparse.Namespace, answer: int, vocabulary: int) -> np.ndarray:
    """Return the paths [leaves, prompt + answer] of a forest. They share the tokens of the prompt."""
    rng = np.random.default_rng(0)
    prompt = np.broadcast_to(rng.integers(vocabulary, size=args.prompt), (args.leaves, args.prompt))
    return np.concatenate([prompt, rng.integers(vocabulary, size=(args.leaves, answer))], axis=1).astype(np.int32)


async def _engine(folder: Path, paths: np.ndarray, args: argparse.Namespace) -> tuple[Sequence[float], int]:
    """Return the seconds of the prefill and of a step, and the tokens that the prefill computes."""
    engine = EmbeddedEngine(folder, args.leaves, args.dtype, args.threads)

    async def draw(seed: int, tokens: int) -> None:
        params = Params(max_tokens=tokens, temperature=1.0, stop=frozenset(), seed=seed)
        async for _ in engine.generate(paths[seed], params, "f", "0"):
            pass

    async def timed(tokens: int) -> float:
        started = time.perf_counter()
        await asyncio.gather(*(draw(i, tokens) for i in range(len(paths))))
        return (time.perf_counter() - started) / tokens

    prefill = await timed(1)
    rows = engine.stats().prompt_tokens - engine.stats().cached_tokens
    step = await timed(args.steps)  # the cache has all keys and values now
    await engine.close()
    return (prefill, step), rows


@torch.inference_mode()
def _transformers(folder: Path, paths: np.ndarray, args: argparse.Namespace) -> Sequence[float]:
    """Return the seconds of the prefill and of a step."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, args.dtype)).eval()
    cache, ids = DynamicCache(), torch.as_tensor(paths).long()
    started = time.perf_counter()
    rows = max(1, PREFILL_ROWS // len(paths))
    for first in range(0, ids.shape[1], rows):
        logits = model(ids[:, first : first + rows], past_key_values=cache, use_cache=True, logits_to_keep=1).logits
    prefill, started = time.perf_counter() - started, time.perf_counter()
    for _ in range(args.steps):
        drawn = torch.multinomial(logits[:, -1].float().softmax(-1), 1)
        logits = model(drawn, past_key_values=cache, use_cache=True).logits
    return prefill, (time.perf_counter() - started) / args.steps
