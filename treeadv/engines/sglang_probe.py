"""Whether a server holds the learner's model: its tokenizer and, on tokens that it draws itself, its log-probs and entropies."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from treeadv.engines.sglang_reply import Chunk
from treeadv.errors import BadInput

PROMPT = 12  # tokens of the probe's prefix
DRAWN = 6  # tokens that it asks for


@dataclass(frozen=True, slots=True)
class Difference:
    """Largest absolute difference to a plain forward, in nats."""

    logprob: float
    entropy: float


def prefix(vocabulary: int) -> list[int]:
    """Token ids spread over the whole vocabulary, always the same."""
    return np.random.default_rng(0).integers(0, vocabulary, PROMPT - 1).tolist() + [vocabulary - 1]


def tokens_of(model_dir: str, ids: list[int]) -> tuple[str, list[int]]:
    """A text that holds these tokens, and what the learner's tokenizer makes of it (without special tokens)."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    text = tokenizer.decode([i for i in ids if i < len(tokenizer)])
    return text, tokenizer.encode(text, add_special_tokens=False)


def compare(model_dir: str, dtype: str, ids: list[int], chunk: Chunk, temperature: float) -> Difference:
    """Difference between what the server reported of `chunk`, drawn after `ids`, and a plain transformers forward on the CPU."""
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=getattr(torch, dtype)).eval()
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([ids + chunk.tokens])).logits[0, len(ids) - 1 : -1].float()
    logp = torch.log_softmax(logits / temperature, dim=-1)
    entropy = -(logp.exp() * logp.clamp(min=-1e4)).sum(-1)
    picked = logp.gather(-1, torch.tensor(chunk.tokens)[:, None])[:, 0]
    del model
    gc.collect()
    return Difference(_largest(picked, chunk.logprobs), _largest(entropy, chunk.entropies))


def _largest(ours: torch.Tensor, theirs: list[float]) -> float:
    return float((ours - torch.tensor(theirs)).abs().max())


def check_model(url: str, info: dict[str, Any], architectures: list[str], model_dir: str) -> None:
    """Refuse a server of another architecture."""
    found = info.get("architectures")
    if found is not None and list(found) != list(architectures):
        raise BadInput(f"{url} serves {info['model_path']} ({', '.join(found)}), the learner trains {', '.join(architectures)} from {model_dir}")


def check_difference(url: str, found: Difference, limit: float, exact: bool) -> None:
    """Refuse a server whose numbers are not those of the learner's model."""
    worst = max(found.logprob, found.entropy if exact else 0.0)
    if worst > limit:
        raise BadInput(
            f"{url}: log-probs differ by {found.logprob:.2g} and entropies by {found.entropy:.2g} nats from a plain forward of the learner's model, "
            f"more than generator.sglang.max_logprob_error={limit:g}: it serves another model, or computes in another dtype"
        )
