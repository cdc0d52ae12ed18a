"""The check that a server has the learner's model.

The server must have the same tokenizer, and report the same log-probs and entropies of the tokens that it draws.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from treeadv.engines.entropy import entropy
from treeadv.engines.fleet.member import Refused
from treeadv.engines.sglang.reply import Chunk
from treeadv.errors import BadInput
from treeadv.jsonl import JsonObject

PROMPT = 12  # tokens of the probe's prefix
DRAWN = 6  # tokens that the probe asks for
HOT = 8.0  # a second temperature: at temperature 1 two models that give one token nearly all mass look equal

_loading = threading.Lock()  # transformers patches torch during a load: two loads at once leave tensors uninitialised


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeError:
    """The largest absolute differences to a plain forward pass, in nats."""

    logprob: float
    entropy: float


def prefix(vocabulary: int) -> list[int]:
    """Return token ids that are spread over the whole vocabulary. Every call returns the same ids."""
    return [*np.random.default_rng(0).integers(0, vocabulary, PROMPT - 1).tolist(), vocabulary - 1]


def tokens_of(model_dir: str, vocabulary: int) -> tuple[str, list[int]]:
    """Return a text of the probe's tokens, and the ids of the text by the learner's tokenizer without special tokens.

    If the server has the learner's tokenizer, `prompt_tokens` returns the same ids after the special tokens.
    """
    with _loading:
        tokenizer = AutoTokenizer.from_pretrained(model_dir)
    text = str(tokenizer.decode([i for i in prefix(vocabulary) if i < len(tokenizer)]))
    ids = tokenizer.encode(text, add_special_tokens=False)
    return text, [i if i < vocabulary - 1 else 0 for i in ids]  # SGLang lists the vocabulary's last id as 0


def echo(text: str) -> JsonObject:
    """Return a request whose reply lists the tokens of the prompt.

    The probe does not use /tokenize, because in some releases it fails for a tokenizer without a maximum length.
    """
    return {"text": text, "sampling_params": {"max_new_tokens": 1}, "return_logprob": True, "logprob_start_len": 0}


def prompt_tokens(body: JsonObject) -> list[int]:
    """Return the token ids of the text of `echo` by the server's tokenizer. Raises `Refused`."""
    try:
        return [int(token) for _, token, *_ in body["meta_info"]["input_token_logprobs"]]
    except (KeyError, TypeError, ValueError) as fault:
        raise Refused(f"the reply does not list the prompt's tokens ({type(fault).__name__}: {fault})") from fault


def compare(
    model_dir: str, dtype: str, ids: list[int], chunks: Sequence[Chunk], temperatures: Sequence[float]
) -> ProbeError:
    """Return the difference between the values that the server reported for `chunks` and a plain forward pass (CPU).

    Each chunk was drawn after `ids` at its temperature.
    """
    with _loading:
        model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=getattr(torch, dtype)).eval()
    found = [_difference(model, ids, chunk, t) for chunk, t in zip(chunks, temperatures, strict=True)]
    return ProbeError(logprob=max(d.logprob for d in found), entropy=max(d.entropy for d in found))


@torch.inference_mode()
def _difference(model: Any, ids: list[int], chunk: Chunk, temperature: float) -> ProbeError:
    logits = model(input_ids=torch.tensor([ids + chunk.tokens])).logits[0, len(ids) - 1 : -1].float()
    logp = torch.log_softmax(logits / temperature, dim=-1)
    picked = logp.gather(-1, torch.tensor(chunk.tokens)[:, None])[:, 0]
    return ProbeError(
        logprob=float((picked - torch.tensor(chunk.logprobs)).abs().max()),
        entropy=float((entropy(logp) - torch.tensor(chunk.entropies)).abs().max()),
    )


def check_model(url: str, info: JsonObject, architectures: list[str], model_dir: str) -> None:
    """Raise `BadInput` for a server whose model has another architecture."""
    found = info.get("architectures")
    if found is not None and list(found) != list(architectures):
        raise BadInput(
            f"{url} serves {info['model_path']}, a {', '.join(found)}, but {model_dir} is a {', '.join(architectures)};"
            f" start the server with {model_dir}"
        )


def check_difference(url: str, found: ProbeError, limit: float, exact: bool) -> None:
    """Raise `BadInput` for a server whose log-probs or entropies differ too much from those of the learner's model."""
    worst = max(found.logprob, found.entropy if exact else 0.0)
    if worst > limit:
        raise BadInput(
            f"{url}: log-probs differ by {found.logprob:.2g} and entropies "
            f"by {found.entropy:.2g} nats from a plain forward of the "
            f"learner's model, more than generator.sglang.max_logprob_error={limit:g}: "
            "start the server with the learner's model and with generator.dtype"
        )
