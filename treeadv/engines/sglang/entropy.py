"""The entropy of the distribution that SGLang draws a token from: the exact value, or a bound.

For the exact value `EntropyTap` runs inside the server as a custom logit processor. It returns the logits unchanged and
records the entropy of the row of each output token. SGLang sends these values back with the tokens. The bounds follow
from the k largest log-probabilities: H_k + d log(1/p_k) <= H <= H_k + d log((|V|-k)/d). Here H_k is the sum of -p log p
over these k tokens, d is the probability mass of all other tokens, and p_k is the smallest of the k probabilities
(docs/architecture.md).

The server imports this module and `treeadv.engines.entropy`, so treeadv must be on its Python path.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import torch

from treeadv.engines.entropy import entropy
from treeadv.jsonl import JsonObject

KEY = "treeadv_entropy"  # the key of the entropies in meta_info of SGLang's reply
TEMPERATURE = "temperature"  # the key of the temperature in custom_params of a request


class EntropyTap:
    """A logit processor with the calls of SGLang's `CustomLogitProcessor`. It does not need SGLang's base class."""

    def __call__(self, logits: torch.Tensor, custom_param_list: Sequence[JsonObject]) -> torch.Tensor:
        """Record the entropy of each row of `logits` [B, V]. There is one row for each request.

        The logits are not divided by the temperature yet. A middle chunk of a prefill draws no token, so its row is
        skipped.
        """
        rows = [i for i, params in enumerate(custom_param_list) if params["__req__"].inflight_middle_chunks <= 0]
        if not rows:
            return logits
        temperature = torch.tensor([custom_param_list[i][TEMPERATURE] for i in rows], device=logits.device)
        logp = torch.log_softmax(logits[rows].float() / temperature[:, None], dim=-1)
        for i, nats in zip(rows, entropy(logp).tolist(), strict=True):
            request = custom_param_list[i]["__req__"]
            if request.customized_info is None:
                request.customized_info = {}
            request.customized_info.setdefault(KEY, []).append(nats)
        return logits


def reference() -> str:
    """Return the `custom_logit_processor` of a request.

    It is a pickle that names `EntropyTap`, in the form that SGLang's `to_str` writes.
    """
    return json.dumps({"callable": f"c{__name__}\n{EntropyTap.__name__}\n.".encode().hex()})


def from_top(logprobs: Sequence[float], vocabulary: int, mode: str) -> float:
    """Return an entropy in nats from the k largest log-probabilities of a distribution over `vocabulary` tokens.

    `mode` chooses the value. `lower` and `upper` are bounds of the entropy. `truncated` omits all other tokens and is
    at most `lower`.
    """
    listed = -sum(math.exp(x) * x for x in logprobs)
    tail = max(0.0, 1.0 - sum(map(math.exp, logprobs)))
    rest = vocabulary - len(logprobs)
    if mode == "truncated" or tail == 0.0 or rest <= 0:
        return listed
    if mode == "lower":
        return listed - tail * min(logprobs)
    return listed + tail * math.log(rest / tail)
