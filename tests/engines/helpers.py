"""Helpers of the engine tests: a configuration, branches as lists, and a plain forward as the reference."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from treeadv.config import Config, parse
from treeadv.data.problems import Problem
from treeadv.engines.base import Draw, Engine, Params

STUBS = Path(__file__).parents[2] / "deploy/sglang_cpu/stubs"
TEMPERATURE = 0.7
_alone = itertools.count()
PROMPT = np.arange(20, 44, dtype=np.int32)
PROBLEM = Problem(id="p", problem="", answer="1", verifier="exact", meta="")


def configure(url: str = "", chunk: int = 8, root: Path = Path("runs"), **sglang: Any) -> Config:
    return parse(
        {
            "run": {"root": str(root), "name": "test"},
            "task": {"source": "none.jsonl"},
            "sampling": {"temperature": TEMPERATURE},
            "generator": {
                "engine": "sglang",
                "threads": 1,
                "sglang": {
                    "url": url,
                    "chunk": chunk,
                    "stubs": str(STUBS),
                    "timeout": 60.0,
                    "start_timeout": 120.0,
                    **sglang,
                },
            },
        },
        "test",
    )


def params(
    max_tokens: int, stop: frozenset[int] = frozenset(), temperature: float = TEMPERATURE, seed: int = 0
) -> Params:
    return Params(max_tokens=max_tokens, temperature=temperature, stop=stop, seed=seed)


async def branch(engine: Engine, prefix: np.ndarray, how: Params, forest: str = "") -> list[Draw]:
    """Draw one branch in a new forest, or in `forest`. The caller must release a given forest."""
    namespace = forest or f"alone-{next(_alone)}"
    draws = [draw async for draw in engine.generate(np.asarray(prefix, np.int32), how, namespace, "0")]
    if not forest:
        await engine.release(namespace)
    return draws


def weights(folder: Path, scale: float = 1.0) -> dict[str, np.ndarray]:
    """Return every tensor of a saved model. A scale of the norms other than 1 gives another policy."""
    return {n: w * scale if "norm" in n else w for n, w in load_file(folder / "model.safetensors").items()}


class Plain:
    """Computes a plain transformers forward with the saved weights or with given weights."""

    def __init__(self, folder: Path, state: dict[str, np.ndarray] | None = None) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        if state:
            self.model.load_state_dict({n: torch.tensor(w) for n, w in state.items()}, strict=False)

    @torch.inference_mode()
    def logp(self, prefix: np.ndarray, drawn: list[int], temperature: float = TEMPERATURE) -> torch.Tensor:
        """Return the log-probabilities [len(drawn), V] at each drawn token."""
        ids = torch.tensor([[*prefix.tolist(), *drawn]])
        logits = self.model(input_ids=ids).logits[0, len(prefix) - 1 : -1]
        return torch.log_softmax(logits / temperature, dim=-1)

    def differences(
        self, prefix: np.ndarray, draws: list[Draw], skip: int = 0, temperature: float = TEMPERATURE
    ) -> tuple[float, float]:
        """Return the largest differences of log-probs and of entropies of the draws from `skip` on, in nats."""
        logp = self.logp(prefix, [d.token for d in draws], temperature)[skip:]
        draws = draws[skip:]
        picked = logp.gather(-1, torch.tensor([[d.token] for d in draws]))[:, 0]
        entropy = -(logp.exp() * logp).sum(-1)
        return (
            float((picked - torch.tensor([d.logprob for d in draws])).abs().max()),
            float((entropy - torch.tensor([d.entropy for d in draws])).abs().max()),
        )


def chi_square_p(observed: np.ndarray, expected: np.ndarray) -> float:
    """Return the p-value of Pearson's test of counts against `expected` [n]. Cells with an expectation below 5 are
    pooled."""
    small = expected < 5
    o = np.append(observed[~small], observed[small].sum())
    e = np.append(expected[~small], expected[small].sum())
    keep = e > 0
    statistic = float((((o - e) ** 2)[keep] / e[keep]).sum())
    freedom = int(keep.sum()) - 1
    return float(torch.special.gammaincc(torch.tensor(freedom / 2), torch.tensor(statistic / 2)))
