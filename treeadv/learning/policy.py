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
# Tokens of the prompt and of each branch in the check of a model: on a GPU blocks of the kernel that are seen whole, in part, not at all.
CPU_CHECK, GPU_CHECK = (2, 3), (200, 300)


class Policy(nn.Module):
    """log pi of every target of a micro-batch. `forward` is one call so that FSDP gathers embedding and head once."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model: Any = model
        self.device: torch.device = model.device
        self.flex = self.device.type == "cuda"  # the form of the mask
        self.adapted = False
        self.float32_head = False  # whether logits are computed in float32 under autocast too
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
            args = self.model.get_output_embeddings(), h, t, row[i:j] - a, target[i:j], self.float32_head
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


def _log_probs(
    head: nn.Module, hidden: torch.Tensor, temperature: torch.Tensor, row: torch.Tensor, target: torch.Tensor, float32: bool
) -> torch.Tensor:
    """hidden [U, H], temperature [U] -> [T]: the logits and the softmax of a row, computed once, serve all its targets."""
    if float32:
        with torch.autocast(hidden.device.type, enabled=False):
            logits = head(hidden.to(next(head.parameters()).dtype))
    else:
        logits = head(hidden)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    logits.div_(temperature[:, None].to(logits.dtype))
    return logits[row, target] - torch.logsumexp(logits, -1)[row]


def load(
    folder: str | Path, device: str = "cpu", compute: torch.dtype = torch.float32, float32_head: bool = False
) -> Policy:
    """Read a model folder with master weights in float32, to be computed with in `compute`. `BadInput` names an architecture whose
    attention cannot take the mask."""
    config = AutoConfig.from_pretrained(folder)
    name = (config.architectures or [type(config).__name__])[0]
    layers = set(getattr(config, "layer_types", None) or []) - {"full_attention"}
    window = getattr(config, "sliding_window", None) if not hasattr(config, "layer_types") else None
    if layers or window:
        raise BadInput(f"{folder}: {name} has layers of another kind ({', '.join(sorted(layers)) or 'sliding window'}) {_ONLY}")
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention.NAME)
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
    policy.float32_head = float32_head
    try:
        error = tree_error(policy, compute, *(GPU_CHECK if policy.flex else CPU_CHECK))
    except BadInput as e:
        raise BadInput(f"{folder}: {name}: {e} {_ONLY}") from e
    if error > 1e-3:
        raise BadInput(f"{folder}: {name} does not keep to the tree (log-probs differ by {error:.2g} nats from a flat pass) {_ONLY}")
    return policy


@torch.no_grad()
def tree_error(policy: Policy, compute: torch.dtype, prompt: int, branch: int) -> float:
    """How far, in nats, the log-probs of two branches of a prompt, packed, are from flat passes by the model's own attention: a model may
    take a mask and not keep to it, or ask its attention for what ours does not do. In bfloat16, beyond five times what that costs flat."""
    P, B, n = prompt, branch, prompt + 2 * (branch - 1)
    ids = (np.arange(P + 2 * B) * 7 + 1) % policy.vocabulary
    start, first, second = ids[:P], ids[P : P + B], ids[P + B :]
    place, at = np.arange(P, P + B - 1), np.arange(1, B)
    fork = Packed(
        pieces=(), token=np.concatenate([start, first[:-1], second[:-1]]), position=np.concatenate([np.arange(P), place, place]),
        end=np.repeat([n, P + B - 1, n], [P, B - 1, B - 1]), blocks=(Block((0, P), (0, 0)), Block((P, n), (0, P))),
        row=np.arange(P - 1, n), source=np.concatenate([[0], at, [0], at + B - 1]), target=ids[P:], temperature=np.ones(n - P + 1), span=(),
    )  # fmt: skip

    def flat() -> torch.Tensor:
        out = []
        for b in (first, second):
            whole = torch.from_numpy(np.concatenate([start, b])).to(policy.device)
            logits = policy.model(input_ids=whole[None], use_cache=False).logits[0, P - 1 : -1]
            out.append(logits.float().log_softmax(-1).gather(1, whole[P:, None])[:, 0])
        return torch.cat(out)

    config = policy.model.config
    with torch.autocast(policy.device.type, compute, enabled=compute != torch.float32):
        packed = policy(fork)
        config._attn_implementation = "eager"
        try:
            rounded = flat()
            with torch.autocast(policy.device.type, enabled=False):
                exact = flat()
        finally:
            config._attn_implementation = attention.NAME
    return float((packed - exact).abs().max() - 5 * (rounded - exact).abs().max())


_ONLY = "and cannot attend to a tree: use a model with full attention in every layer (Llama, Qwen2, Qwen3, SmolLM)"
