"""The reference: every leaf a sequence of its own through the unmodified model, the loss written with autograd and no tree in it."""

from __future__ import annotations

import numpy as np
import torch

from treeadv.forest import Forest
from treeadv.learning.advantage import advantages, leaf_advantages
from treeadv.presets import AdvantageSpec


def log_probs(model: torch.nn.Module, f: Forest) -> list[torch.Tensor]:
    """[L] of [tokens of the leaf]: log-probs under logits / temperature from one forward pass a leaf."""
    out = []
    for leaf in range(f.leaves):
        ids = torch.from_numpy(np.concatenate([f.prompt, f.leaf_tokens(leaf)])).long()
        logits = model(input_ids=ids[None]).logits[0, len(f.prompt) - 1 : -1] / np.float64(f.temperature)
        out.append(logits.log_softmax(-1).gather(1, ids[len(f.prompt) :, None])[:, 0])
    return out


def on_leaf(f: Forest, x: np.ndarray, leaf: int) -> torch.Tensor:
    """The entries of a token array [T] along one leaf's path."""
    path = f.path(int(f.leaf_segment[leaf]))
    return torch.from_numpy(np.concatenate([x[f.start[s] : f.start[s + 1]] for s in path]).astype(np.float64))


def loss(model: torch.nn.Module, forests: list[Forest], spec: AdvantageSpec, room: int) -> torch.Tensor:
    """The uncorrected objective on expanded leaves: a token shared by K leaves stands in K sequences and weighs c / K in each."""
    total = torch.zeros((), dtype=torch.float64)
    Z = sum(float(advantages(f, spec)[1] @ f.lengths) for f in forests)
    for f in forests:
        A, c = (np.repeat(x, f.lengths) for x in advantages(f, spec))
        weight = c / np.repeat(f.leaf_count, f.lengths)
        own = leaf_advantages(f, spec) if spec.credit == "leaf" else None
        for leaf, logp in enumerate(log_probs(model, f)):
            logp = logp.double()
            log_r = logp - on_leaf(f, f.logprob, leaf)
            a = on_leaf(f, A, leaf) if own is None else torch.full_like(logp, own[leaf])
            r = log_r.exp() if spec.ratio == "token" else log_r.mean().exp().detach() * (logp - logp.detach()).exp()
            J = torch.minimum(r * a, r.clamp(1 - spec.clip[0], 1 + spec.clip[1]) * a) * on_leaf(f, weight, leaf)
            kept = on_leaf(f, (np.exp(f.logprob.astype(np.float64)) <= spec.max_prob).astype(np.float64), leaf)
            J = (J * kept).sum()
            divisor = {"token_mean": Z, "sequence_mean": len(forests) * f.leaves * len(logp),
                       "constant": len(forests) * room}[spec.normaliser]  # fmt: skip
            total = total - J / divisor
    return total
