"""The entropy of the distribution that SGLang draws a token from, exact or bounded.

Exact: `EntropyTap` runs inside the server as a custom logit processor. It returns the logits as they came and notes,
for each output token, the entropy of the row it is drawn from; SGLang sends the notes back beside the tokens. Bounded:
from the k largest log-probabilities, H_k + d log(1/p_k) <= H <= H_k + d log((|V|-k)/d), where d is the mass outside and
p_k the smallest listed (docs/architecture.md).

The server imports this module and `treeadv.engines.entropy`, so treeadv must be on its Python path.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import torch

from treeadv.engines.entropy import entropy

KEY = "treeadv_entropy"  # of meta_info in SGLang's reply
TEMPERATURE = "temperature"  # of a request's custom_params


class EntropyTap:
    """`CustomLogitProcessor` of SGLang, by its calls; its base class is not needed and not imported."""

    def __call__(self, logits: torch.Tensor, custom_param_list: Sequence[dict[str, Any]]) -> torch.Tensor:
        """logits [B, V] before temperature, one row a request. A middle chunk of a prefill draws no token: its row is
        passed over.
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
    """What a request sends as `custom_logit_processor`: a pickle of `EntropyTap` by name, as SGLang's own `to_str`
    makes it.
    """
    return json.dumps({"callable": f"c{__name__}\n{EntropyTap.__name__}\n.".encode().hex()})


def from_top(logprobs: Sequence[float], vocabulary: int, mode: str) -> float:
    """Entropy in nats from the k largest log-probabilities of a distribution over `vocabulary` tokens.

    `mode`: truncated leaves the tail out (it is below lower), lower and upper bound the truth.
    """
    listed = -sum(math.exp(x) * x for x in logprobs)
    tail = max(0.0, 1.0 - sum(map(math.exp, logprobs)))
    rest = vocabulary - len(logprobs)
    if mode == "truncated" or tail == 0.0 or rest <= 0:
        return listed
    if mode == "lower":
        return listed - tail * min(logprobs)
    return listed + tail * math.log(rest / tail)
