"""The trained model: a Hugging Face causal language model, unchanged, read as a function from micro-batches to log-probabilities."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from treeadv.errors import BadInput
from treeadv.learning import attention
from treeadv.learning.packing import Block, Packed

HEAD_ROWS = 512  # rows whose vocabulary logits exist at one time


class Policy(nn.Module):
    """log pi of every target of a micro-batch. `forward` is one call so that FSDP gathers embedding and head once."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model: Any = model
        self.device: torch.device = model.device
        self.flex = self.device.type == "cuda"  # the form of the mask
        self.adapted = False
        self.vocabulary: int = model.config.vocab_size

    def adapt(self, rank: int, seed: int) -> None:
        """Freeze the weights and train a LoRA adapter of `rank` on every linear layer but the head (peft, alpha = 2 rank).

        `seed` draws its A: all ranks, a run begun again and a replay have the same.
        """
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError as e:
            raise BadInput(f"learner.lora_rank={rank}: the package peft is not installed (pip install peft)") from e
        lora = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear")
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed)
            self.model = inject_adapter_in_model(lora, self.model)
        self.adapted = True

    def forward(self, packed: Packed) -> torch.Tensor:
        """[T] float32 (float64 for a float64 model): log-probs of the targets under logits / temperature, given their paths."""
        # split, not slices: the gradient of a slice is as large as what it was cut from
        hidden = self._hidden(packed)[self._tensor(packed.row)].split(HEAD_ROWS)
        temperature = self._tensor(packed.temperature).split(HEAD_ROWS)
        order = np.argsort(packed.source, kind="stable")  # targets of one slice of rows stand together
        row, target = self._tensor(packed.source[order]), self._tensor(packed.target[order])  # one copy each, none in the loop
        first = range(0, len(packed.row), HEAD_ROWS)
        bounds = [*np.searchsorted(packed.source[order], first).tolist(), len(order)]
        out = []
        for a, (i, j), h, t in zip(first, pairwise(bounds), hidden, temperature, strict=True):
            args = self.model.get_output_embeddings(), h, t, row[i:j] - a, target[i:j]
            out.append(_log_probs(*args) if len(first) == 1 else checkpoint(_log_probs, *args, use_reentrant=False))
        return torch.cat(out)[self._tensor(np.argsort(order))]

    def _tensor(self, x: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(x).to(self.device)

    def _hidden(self, packed: Packed) -> torch.Tensor:
        """[N, H] of every row, attending to its ancestors."""
        tokens, position = self._tensor(packed.token)[None], self._tensor(packed.position)[None]
        # one form only: the dense masks of a long forest take seconds and hundreds of MB
        how = {"attention_mask": attention.flex_mask(packed, self.device)} if self.flex else {"tree": attention.sdpa_blocks(packed)}
        return self.model.get_decoder()(input_ids=tokens, position_ids=position, use_cache=False, **how).last_hidden_state[0]


def _log_probs(head: nn.Module, hidden: torch.Tensor, temperature: torch.Tensor, row: torch.Tensor, target: torch.Tensor):
    """hidden [U, H], temperature [U] -> [T]: the logits and the softmax of a row, computed once, serve all its targets."""
    logits = head(hidden)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    logits.div_(temperature[:, None].to(logits.dtype))
    return logits[row, target] - torch.logsumexp(logits, -1)[row]


def load(folder: str | Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Policy:
    """Read a model folder with master weights in `dtype`. `BadInput` names an architecture whose attention cannot take the mask."""
    config = AutoConfig.from_pretrained(folder)
    name = (config.architectures or [type(config).__name__])[0]
    layers = set(getattr(config, "layer_types", None) or []) - {"full_attention"}
    window = getattr(config, "sliding_window", None) if not hasattr(config, "layer_types") else None
    if layers or window:
        raise BadInput(f"{folder}: {name} has layers of another kind ({', '.join(sorted(layers)) or 'sliding window'}) {_ONLY}")
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=attention.NAME)
    except ValueError as e:
        if "attention" not in str(e):
            raise
        raise BadInput(f"{folder}: {name} does not take an attention function {_ONLY}") from e
    if not model._supports_attention_backend:
        raise BadInput(f"{folder}: {name} does not take an attention function {_ONLY}")
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # it would make the ratio to the behaviour policy noise
    model.to(device).eval()
    policy = Policy(model)
    _check_tree(policy, f"{folder}: {name}")
    return policy


@torch.no_grad()
def _check_tree(policy: Policy, name: str) -> None:
    """Compare two branches of a prompt, packed, with a flat pass over each: a model may take a mask and not keep to it."""
    prompt, branches = [1, 2], [[3, 4, 5], [4, 2, 1]]
    fork = Packed(
        pieces=(), token=np.array([1, 2, 3, 4, 4, 2]), position=np.array([0, 1, 2, 3, 2, 3]), end=np.array([6, 6, 4, 4, 6, 6]),
        blocks=(Block((0, 2), (0, 0)), Block((2, 6), (0, 2))), row=np.array([1, 2, 3, 4, 5]), source=np.array([0, 1, 2, 0, 3, 4]),
        target=np.array([3, 4, 5, 4, 2, 1]), temperature=np.ones(5), span=(),
    )  # fmt: skip
    flat = [policy.model(input_ids=torch.tensor([prompt + b], device=policy.device)).logits[0, 1:-1].log_softmax(-1) for b in branches]
    want = torch.stack([p[torch.arange(3), b] for p, b in zip(flat, branches, strict=True)]).flatten()
    error = float((policy(fork) - want).abs().max())
    if error > 1e-3:
        raise BadInput(f"{name} does not keep to the tree (log-probs differ by {error:.2g} nats from a flat pass) {_ONLY}")


_ONLY = "and cannot attend to a tree: use a model with full attention in every layer (Llama, Qwen2, Qwen3, SmolLM)"
