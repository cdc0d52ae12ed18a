"""The reference implementation of the loss, without trees. The unmodified model computes every leaf as a separate
sequence, and autograd computes the gradient."""

from __future__ import annotations

import numpy as np
import torch

from treeadv.forest import Forest
from treeadv.learning.advantage import advantages, leaf_advantages
from treeadv.presets import AdvantageSpec


def log_probs(model: torch.nn.Module, f: Forest) -> list[torch.Tensor]:
    """Return one array of log-probs per leaf [tokens of the leaf], under logits / temperature, from one forward pass
    per leaf."""
    out = []
    for leaf in range(f.leaves):
        ids = torch.from_numpy(np.concatenate([f.prompt, f.leaf_tokens(leaf)])).long()
        logits = model(input_ids=ids[None]).logits[0, len(f.prompt) - 1 : -1] / np.float64(f.temperature)
        out.append(logits.log_softmax(-1).gather(1, ids[len(f.prompt) :, None])[:, 0])
    return out


def on_leaf(f: Forest, x: np.ndarray, leaf: int) -> torch.Tensor:
    """Return the entries of a token array [T] along the path of one leaf."""
    path = f.path(int(f.leaf_segment[leaf]))
    return torch.from_numpy(np.concatenate([x[f.start[s] : f.start[s + 1]] for s in path]).astype(np.float64))


def correction(name: str, w: torch.Tensor) -> torch.Tensor:
    """Return the weight of each token of a leaf, for w [tokens of the leaf] = pi_proximal / mu."""
    product, mean = w.prod(), w.log().mean().exp()
    truncated = w.clamp(max=2.0)
    return {
        "none": torch.ones_like(w),
        "tis": truncated,
        "sequence_tis": product.clamp(max=2.0).expand_as(w),
        "icepop": torch.where((w >= 0.5) & (w <= 5.0), w, 0.0),
        "decoupled": torch.where(w <= 5.0, w, 0.0),
        "sequence_mask": truncated if 0.5 <= product <= 2.0 else torch.zeros_like(w),
        "geometric_mask": truncated if 0.99 <= mean <= 1.01 else torch.zeros_like(w),
    }[name]


def surrogate(spec: AdvantageSpec, r: torch.Tensor, a: torch.Tensor, logp: torch.Tensor) -> torch.Tensor:
    """Return the gain of each token for its ratio and advantage."""
    bounded = r.clamp(1 - spec.clip[0], 1 + spec.clip[1])
    if spec.surrogate == "cispo":
        return bounded.detach() * a * logp
    gain = torch.minimum(r * a, bounded * a)
    return torch.where(a < 0, torch.maximum(gain, spec.dual_clip * a), gain) if spec.dual_clip else gain


def loss(
    model: torch.nn.Module, forests: list[Forest], spec: AdvantageSpec, room: int, weights: str = "none",
    proximal: list[np.ndarray] | None = None,
) -> torch.Tensor:  # fmt: skip
    """Return the objective on expanded leaves. A token of K leaves is in K sequences, with weight c / K in each.

    `proximal` is log pi at the arrival of the batch, one array [T] per forest. With None the objective clips the ratio
    to the behaviour policy.
    """
    total = torch.zeros((), dtype=torch.float64)
    Z = 0.0
    for f in forests:
        likely = np.exp(f.logprob.astype(np.float64)) > spec.max_prob
        Z += float(np.repeat(advantages(f, spec)[1], f.lengths)[~likely].sum())
    Z = Z or 1.0
    for n, f in enumerate(forests):
        A, c = (np.repeat(x, f.lengths) for x in advantages(f, spec))
        weight = c / np.repeat(f.leaf_count, f.lengths)
        own = leaf_advantages(f, spec) if spec.credit == "leaf" else None
        for leaf, logp in enumerate(log_probs(model, f)):
            logp, behaviour = logp.double(), on_leaf(f, f.logprob, leaf)
            old = behaviour if proximal is None else on_leaf(f, proximal[n], leaf)
            log_r = logp - old
            a = on_leaf(f, A, leaf) if own is None else torch.full_like(logp, own[leaf])
            r = log_r.exp() if spec.ratio == "token" else log_r.mean().exp().detach() * (logp - logp.detach()).exp()
            J = surrogate(spec, r, a, logp) * on_leaf(f, weight, leaf) * correction(weights, (old - behaviour).exp())
            kept = on_leaf(f, (np.exp(f.logprob.astype(np.float64)) <= spec.max_prob).astype(np.float64), leaf)
            J = (J * kept).sum()
            divisor = {"token_mean": Z, "sequence_mean": len(forests) * f.leaves * len(logp),
                       "constant": len(forests) * room}[spec.normaliser]  # fmt: skip
            total = total - J / divisor
    return total
